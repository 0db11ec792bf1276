"""Measure trained weights on clean images: PSNR, SSIM, LPIPS.

python launch/evaluate.py --run runs/gaussian25 --images Kodak/ --protocol n2n2018
accelerate launch --config_file launch/backends/machine.yaml launch/evaluate.py --run ... --images ...
"""

import argparse
from pathlib import Path

from n2n_dist.errors import run_command


def main() -> None:
    """Parse the command line, evaluate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder or .safetensors file")
    parser.add_argument("--images", type=Path, required=True, help="folder of clean images")
    parser.add_argument("--protocol", choices=["n2n2018"], default="n2n2018", help="gaussian noise in float, full size")
    parser.add_argument("--sigma", type=float, default=25.0, help="noise in 1/255 of white (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder for scores.csv and comparison.png (beside the weights)")
    arguments = parser.parse_args()

    from n2n_dist.inference.evaluate import evaluate, table

    run_dir = arguments.run.parent if arguments.run.is_file() else arguments.run
    name = f"{arguments.images.resolve().name}-{arguments.protocol}-sigma{arguments.sigma:g}"
    output = arguments.output or run_dir / "evaluation" / name
    rows = evaluate(arguments.run, arguments.images, output, arguments.sigma)
    if rows is not None:
        print(table(rows))
        print(f"written: scores.csv and comparison.png in {output}")


if __name__ == "__main__":
    run_command(main)
