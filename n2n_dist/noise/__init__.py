"""Random numbers by key, and the noise models that use them."""
