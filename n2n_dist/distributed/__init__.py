"""Processes and devices: the backend, the batch over its ranks, ZeRO, and the watchdog."""
