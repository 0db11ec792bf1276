"""The training run: processes, precision, optimiser, checkpoints, TensorBoard, and the loop itself."""
