"""Speed and memory, measured as ratios in one run: shared machines drift, so two ways take turns.

Run by `python launch/bench.py --PART` of a checkout, from any folder; `results/` has what was recorded.
"""
