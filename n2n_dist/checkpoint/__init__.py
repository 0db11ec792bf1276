"""Checkpoints of a run: the manager that saves and loads, the format, and the run folder's lock."""
