"""What a run shows: TensorBoard, image strips, the progress bar and the lines on the terminal. Rank 0 only."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import PIL.Image
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from n2n_dist.inference.pictures import join_strips


class Tracker:
    """Writes curves and strips; on other ranks than 0 it does nothing."""

    def __init__(self, run_dir: Path, step: int, steps: int, main: bool) -> None:
        """Continue the curves after `step`: points that a killed run wrote beyond it disappear."""
        self.run_dir = run_dir
        self.main = main
        self.bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            disable=not main,
            file=sys.stdout,
            dynamic_ncols=True,
            mininterval=1 if sys.stdout.isatty() else 30,  # a job's log is a file: fewer lines
        )
        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1) if main else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each named curve."""
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def text(self, name: str, text: str) -> None:
        """Show a text, such as the configuration, in TensorBoard."""
        if self.writer:
            self.writer.add_text(name, "    " + text.replace("\n", "\n    "), 0)

    def strips(self, step: int, strips: Mapping[str, Sequence[Sequence[torch.Tensor]]]) -> None:
        """Show each set's rows of images [C, H, W] (noisy | denoised | reference), also as RUN/samples/*.png."""
        for name, rows in strips.items():
            if self.writer and rows:
                picture = join_strips(rows)
                self.writer.add_image(f"{name}: noisy, denoised, reference", picture, step, dataformats="HWC")
                path = self.run_dir / "samples" / f"{name}-{step:08d}.png"
                path.parent.mkdir(exist_ok=True)
                PIL.Image.fromarray(picture).save(path)

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self.main:
            self.bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Finish the bar and the event file."""
        self.bar.close()
        if self.writer:
            self.writer.close()


class Window:
    """The steps since the last point of the curves, on one rank."""

    def __init__(self) -> None:
        self.bad = 0
        self.restart()

    def restart(self) -> None:
        """Begin the next point; the count of replaced samples goes on."""
        self.start = time.perf_counter()
        self.steps = 0
        self.waited = 0.0

    def add(self, waited: float, bad: Sequence[str]) -> None:
        """Count one step, and name the samples that were replaced in it."""
        self.steps += 1
        self.waited += waited
        self.bad += len(bad)
        for message in bad:
            print(f"replaced an unreadable sample: {message}", flush=True)

    def seconds(self) -> float:
        """Return the time since the last point."""
        return time.perf_counter() - self.start

    def waiting(self) -> float:
        """Return the share of the time that was spent waiting for data."""
        return self.waited / self.seconds()


def memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: on the GPU where it computes there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
