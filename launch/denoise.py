"""Denoise a file or a folder of images of any size, every frame of a stack; the bit depth is kept.

python launch/denoise.py --run runs/gaussian25 noisy/ denoised/
python launch/denoise.py --run best.safetensors frame.tif clean.tif --black 256 --white 4095
"""

from n2n_dist import cli
from n2n_dist.errors import run_command

if __name__ == "__main__":
    run_command(lambda: cli.run("denoise", __doc__))
