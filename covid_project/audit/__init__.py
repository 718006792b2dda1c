"""Audits: what in the data, and not in the disease, could make a number look good."""
