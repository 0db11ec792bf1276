"""Training's reader: the order of samples, crops of them, and the loader."""
