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
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from n2n_dist.inference.pictures import join_strips

CHARTS = {
    "loss": ["train/total", "train/pixel"],
    "validation PSNR, dB": ["validation/(.*/)?u?psnr$"],
    "gradient norm": ["train/gradient_norm"],
    "learning rate": ["train/learning_rate"],
    "images per second": ["speed/images_per_second"],
    "share of the time waiting for data": ["speed/waiting_for_data"],
}
"""What to look at first, on TensorBoard's page of custom scalars: title of a chart, and its curves."""


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
        if self.writer:
            self.writer.add_custom_scalars({"run": {title: ["Multiline", tags] for title, tags in CHARTS.items()}})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each named curve."""
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def point(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point of the training curves, and show loss and speed at the progress bar."""
        self.scalars(step, values)
        self.bar.set_postfix_str(f"loss {values['train/total']:.4f}, {values['speed/images_per_second']:.1f} images/s")

    def text(self, name: str, text: str) -> None:
        """Show a text, such as the configuration, in TensorBoard."""
        if self.writer:
            self.writer.add_text(name, "    " + text.replace("\n", "\n    "), 0)

    def settings(self, settings: Mapping[str, object], measured: Sequence[str]) -> None:
        """List the run under TensorBoard's hparams: its settings beside the last values of the `measured` curves."""
        if self.writer and self.writer.file_writer:
            given = {name: value for name, value in settings.items() if value is not None}
            values = {name: value if isinstance(value, int | float) else str(value) for name, value in given.items()}
            for summary in hparams(values, dict.fromkeys(measured, 0.0)):
                self.writer.file_writer.add_summary(summary)

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
        self.start = time.perf_counter()
        self.steps = 0
        self.waited = 0.0
        self.bad_samples = 0
        self.losses: dict[str, torch.Tensor] = {}
        self.gradient_norm = torch.zeros(())

    def add(self, losses: Mapping[str, torch.Tensor], gradient_norm: torch.Tensor, waited: float, bad: int) -> None:
        """Count one step; nothing waits for the device."""
        self.steps += 1
        self.waited += waited
        self.bad_samples += bad
        self.losses = {name: self.losses.get(name, 0) + value for name, value in losses.items()}
        # keeps what is not finite: ZeRO skips such a step without a word
        self.gradient_norm = torch.maximum(self.gradient_norm.to(gradient_norm.device), gradient_norm)

    def means(self) -> torch.Tensor:
        """Return the mean of each part of the loss, float64 on the CPU; waits for the device."""
        return torch.stack(list(self.losses.values())).double().cpu() / self.steps

    def seconds(self) -> float:
        """Return the time since the last point."""
        return time.perf_counter() - self.start


def memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: on the GPU where it computes there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
