"""The format of shards: WebDataset tars, their index, and their cache on this machine."""
