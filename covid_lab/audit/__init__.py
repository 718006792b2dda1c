"""Audits of the data, of shortcuts in them, of their labels, and of the protocol of a run."""
