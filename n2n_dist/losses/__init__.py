"""Distances between a prediction and its target: between pixels, and between VGG-16 features."""
