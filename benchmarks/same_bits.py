"""Print the losses, scores and final weights of short runs to the bit, to compare a checkout before and after a change.

    python benchmarks/same_bits.py --repo ../before > before.txt
    python benchmarks/same_bits.py --repo . > after.txt
    diff before.txt after.txt

Runs are started by the command line alone, so that checkouts of any age can be compared: 20 steps of a small network
in float32 on the CPU with one thread, alone, with DDP and with ZeRO-1 on two processes. Bits are those of one machine
and one version of torch. Weights are compared by shape and content, whatever their names.
"""

import argparse
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COMMON = (
    "run.seed=3",
    "model.width=8",
    "model.depths=[1,1]",
    "data.crop=32",
    "data.batch=8",
    "data.workers=0",
    "optim.lr=3e-3",
    "optim.ema=0.9",
    "train.steps=20",
    "train.threads=1",
    "train.precision=fp32",
    "train.log_every=1",
    "checkpoint.every=20",
    "validate.every=10",
    "validate.images=2",
)
CASES = {
    "gaussian": ("noise.sigma=[5,50]", "loss.pixel=l1"),
    "poisson": ("noise.name=poisson", "noise.lam=30", "loss.pixel=l2", "loss.perceptual=0", "train.micro_batch=2"),
    "captures": ("pairs.source=captures", "model.channels=1", "loss.pixel=l2", "loss.perceptual=0"),
    "mean-capture": ("pairs.source=captures", "pairs.target=mean", "model.channels=1", "loss.form=averaged"),
    "neighbours": ("pairs.source=neighbours", "noise.sigma=25", "model.stem=1", "loss.pixel=l2", "loss.perceptual=0"),
    "matched": ("noise.sigma=25", "loss.form=matched", "loss.perceptual=0.1"),
}
BACKENDS = {"one": None, "ddp": "cpu", "zero1": "zero1"}
"""Launch files; None: one process without a launcher."""
RENAMED = {"pairs.source": "pairs.name", "model.stem": "model.unshuffle"}
"""Settings that had another name in older checkouts."""


def environment(repo: Path) -> dict[str, str]:
    """Return the variables under which a checkout runs, without GPU."""
    return os.environ | {"PYTHONPATH": str(repo), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def call(repo: Path, *command: object) -> None:
    """Run Python in the checkout; what it prints is shown if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=repo, env=environment(repo), capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout.decode()}\n{done.stderr.decode()}")


def names(repo: Path) -> dict[str, str]:
    """Return what the checkout calls the settings that were renamed."""
    probe = "from n2n_dist.config import load; import sys; load(None, sys.argv[1:])"
    known = {}
    for old, new in RENAMED.items():
        value = {"pairs.source": "synthetic", "model.stem": "2"}[old]
        done = subprocess.run(
            [sys.executable, "-c", probe, f"{new}={value}"], cwd=repo, env=environment(repo), capture_output=True
        )
        known[old] = old if done.returncode else new
    return known


def build_captures(repo: Path, folder: Path) -> Path:
    """Build shards of smooth scenes, each with four captures, and a held-out validation set."""
    for scene in range(12):
        rng = np.random.default_rng(scene)
        rows, columns = np.mgrid[:64, :80] / 16
        clean = 0.5 + 0.2 * np.sin(rows + scene) + 0.2 * np.cos(columns * (1 + scene / 12))
        (folder / f"scenes/{scene:02d}").mkdir(parents=True)
        for capture in range(4):
            noisy = (clean + rng.normal(0, 0.1, clean.shape)).clip(0, 1)
            np.save(folder / f"scenes/{scene:02d}/{capture}.npy", np.rint(noisy * 65535).astype(np.uint16))
    build = ("shards/build.py", folder / "scenes", folder / "shards", "--captures", "folder")
    call(repo, *build, "--holdout", 2, "--shard-samples", 4)
    return folder / "shards"


def train(repo: Path, backend: str | None, settings: list[str]) -> None:
    """Train by the command line of the README."""
    if backend is None:
        call(repo, "launch/train.py", *settings)
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launcher = ("-m", "accelerate.commands.launch", f"--config_file=launch/backends/{backend}.yaml")
    call(repo, *launcher, f"--main_process_port={port}", "launch/train.py", *settings)


def points(run_dir: Path) -> Iterator[str]:
    """Yield every point of the curves that only bits decide, the float32 written without rounding."""
    events = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0}).Reload()
    for name in sorted(events.Tags()["scalars"]):
        if name.startswith(("train/", "validation/")):
            for event in events.Scalars(name):
                yield f"{name} {event.step} {float(event.value).hex()}"


def weights_digest(path: Path) -> str:
    """Digest the tensors of a file of weights, in an order that does not depend on their names."""
    tensors = safetensors.numpy.load_file(path).values()
    contents = sorted((tensor.shape, tensor.tobytes()) for tensor in tensors)
    digest = hashlib.sha256()
    for shape, content in contents:
        digest.update(repr(shape).encode() + content)
    return digest.hexdigest()


def main() -> None:
    """Run the chosen cases with the chosen backends and print what they give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, default=Path(__file__).resolve().parents[1], help="checkout (this one)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), metavar="BACKEND")
    arguments = parser.parse_args()
    repo = arguments.repo.resolve()
    known = names(repo)
    with tempfile.TemporaryDirectory(prefix="same-bits-") as name:
        folder = Path(name)
        captures = build_captures(repo, folder)
        for case in arguments.cases:
            shards = captures if "pairs.source=captures" in CASES[case] else repo / "shards/demo/train"
            validation = captures / "validation" if shards == captures else repo / "shards/demo/validation"
            for backend in arguments.backends:
                run_dir = folder / f"{case}-{backend}"
                settings = [*COMMON, f"data.shards={shards}", f"data.validation={validation}", *CASES[case]]
                for old, new in known.items():
                    settings = [setting.replace(f"{old}=", f"{new}=") for setting in settings]
                train(repo, BACKENDS[backend], [*settings, f"run.dir={run_dir}"])
                for point in points(run_dir):
                    print(case, backend, point)
                print(case, backend, "weights", weights_digest(run_dir / "last.safetensors"), flush=True)
                shutil.rmtree(run_dir)


if __name__ == "__main__":
    main()
