"""Explanations of a classifier's decisions: where in an image it finds its evidence."""
