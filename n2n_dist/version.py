"""The version, without an import of anything else: files that are written say which version wrote them."""

__version__ = "0.1.0"
