"""The denoiser: blocks, the residual U-Net, and its weights file."""
