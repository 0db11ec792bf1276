"""Parts of the training loop: optimiser, precision, validation, curves and checks."""
