"""Promises about speed and memory, each as a ratio to a peer that does the same in the same run."""
