"""Images with their range: in memory, in files of every format, in panels for people."""
