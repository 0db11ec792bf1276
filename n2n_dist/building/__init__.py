"""The program that makes shards: a plan, tiles, and the tars of every part."""
