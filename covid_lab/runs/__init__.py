"""Runs: settings, notebooks in order, workers, locks, the page of a run."""
