"""Measure trained weights on clean images: PSNR, SSIM, LPIPS.

python launch/evaluate.py --run runs/gaussian25 --images Kodak/ --protocol n2n2018
python launch/evaluate.py --run runs/poisson30 --images Kodak/ --noise poisson --level 30
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
    parser.add_argument("--protocol", choices=["n2n2018"], default="n2n2018", help="noise in float, full-size images")
    parser.add_argument("--noise", default="gaussian", help="a noise.name of the configurations (%(default)s)")
    parser.add_argument("--level", type=float, help="sigma in 1/255 of white, photons, ... (the default of that noise)")
    parser.add_argument("--output", type=Path, help="folder for scores.csv and comparison.png (beside the weights)")
    arguments = parser.parse_args()

    from n2n_dist.inference.evaluate import evaluate, table
    from n2n_dist.noise.models import fixed

    noise = fixed(arguments.noise, arguments.level)
    run_dir = arguments.run.parent if arguments.run.is_file() else arguments.run
    name = f"{arguments.images.resolve().name}-{arguments.protocol}-{noise.name}{noise.ends:g}"
    output = arguments.output or run_dir / "evaluation" / name
    rows = evaluate(arguments.run, arguments.images, output, noise)
    if rows is not None:
        print(table(rows))
        print(f"written: scores.csv and comparison.png in {output}")


if __name__ == "__main__":
    run_command(main)
