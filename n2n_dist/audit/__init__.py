"""The audit of shards: what was measured, what it means, and a page of it."""
