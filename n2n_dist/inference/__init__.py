"""Use of a trained denoiser: images of any size in tiles, and evaluation by a named protocol."""
