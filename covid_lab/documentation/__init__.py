"""The documentation's generated pages, its picture, and the check of its links."""
