"""Final models on the images of another collection, and what can be done about the drop."""
