"""From image files to crops: files, shards and their index, the order of samples, the loader."""
