"""Measure trained weights on clean images: PSNR, SSIM, LPIPS.

python launch/evaluate.py --run runs/gaussian25 --images Kodak/
python launch/evaluate.py --run runs/poisson30 --images Kodak/ --noise poisson --level 30
accelerate launch --config_file launch/backends/machine.yaml launch/evaluate.py --run ... --images ...
"""

from n2n_dist import cli
from n2n_dist.errors import run_command

if __name__ == "__main__":
    run_command(lambda: cli.run("evaluate", __doc__))
