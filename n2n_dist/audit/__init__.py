"""The audit of shards: measurements, findings, table and page."""
