"""Denoise a file or a folder of images of any size, every frame of a stack; the bit depth is kept.

python launch/denoise.py --run runs/gaussian25 noisy/ denoised/
python launch/denoise.py --run best.safetensors frame.tif clean.tif --black 256 --white 4095
"""

import argparse
from pathlib import Path

from n2n_dist.errors import run_command


def main() -> None:
    """Parse the command line and denoise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder or .safetensors file")
    parser.add_argument("source", type=Path, help="image, or folder of images")
    parser.add_argument("destination", type=Path, help="file or folder to write")
    parser.add_argument("--black", type=float, help="value that means no light, as when the shards were built (0)")
    parser.add_argument("--white", type=float, help="value that means full light (the type's largest)")
    arguments = parser.parse_args()

    from n2n_dist.inference.denoise import denoise_files

    denoise_files(arguments.run, arguments.source, arguments.destination, arguments.black, arguments.white)


if __name__ == "__main__":
    run_command(main)
