"""Noise models, one class each."""
