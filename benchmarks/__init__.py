"""Speed and memory, measured as ratios in one run: shared machines drift, so two ways take turns.

Runs from the root of the repository, whose launch files and configurations it uses.
"""
