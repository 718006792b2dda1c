"""The documentation's generated pages, and the check of its links."""
