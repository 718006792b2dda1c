"""Is a number to be believed? The data, its shortcuts, and the protocol of a run, audited."""
