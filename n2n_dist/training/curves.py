"""Curves, panels, the progress bar and the lines on the terminal, all by rank 0."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import PIL.Image
import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from n2n_dist.images.panels import join_panels

CHARTS = {
    "loss": ["train/total"],
    "validation PSNR, dB": ["validation/(.*/)?(psnr|upsnr|upsnr_low)$"],
    "gradient norm": ["train/gradient_norm"],
    "learning rate": ["train/learning_rate"],
    "images per second": ["speed/images_per_second"],
    "share of the time waiting for data": ["speed/waiting_for_data"],
}
"""Charts of TensorBoard's page of custom scalars: title, and patterns of its curves."""
CLOCK_WAIT_SECONDS = 3.0
"""Longest wait for a clock that is behind that of the machine where the run was before."""


class Curves:
    """Writes curves and panels to TensorBoard; does nothing on other ranks than 0.

    Where they cannot be written, as on a full disk, the run goes on without them and prints a warning.
    """

    def __init__(self, run_dir: Path, step: int, steps: int, main: bool) -> None:
        """Continue the curves after `step`: points beyond it, which a killed run wrote, are purged."""
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
        self._points = 0
        self.writer: SummaryWriter | None = None
        self.failed = False
        self._purge_step: int | None = step + 1
        """Of the first writer; later ones leave what it wrote."""
        charts = {"run": {title: ["Multiline", tags] for title, tags in CHARTS.items()}}
        self._write(lambda writer: writer.add_custom_scalars(charts))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each named curve."""

        def add(writer: SummaryWriter) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._write(add)

    def point(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point of the training curves, and show loss and speed at the progress bar.

        The second point, without the time that a start takes, also prints the time of an epoch.
        """
        self.scalars(step, values)
        loss, speed, epoch = (
            values[name] for name in ("train/total", "speed/images_per_second", "speed/minutes_per_epoch")
        )
        self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:.1f} images/s, {epoch:.1f} min an epoch")
        self._points += 1
        if self._points == 2:
            self.say(f"time     {duration(60 * epoch)} an epoch at {speed:.1f} images/s, without validation")

    def text(self, name: str, text: str) -> None:
        """Add a text, such as the configuration, to TensorBoard."""
        self._write(lambda writer: writer.add_text(name, "    " + text.replace("\n", "\n    "), 0))

    def settings(self, settings: Mapping[str, object], measured: Sequence[str]) -> None:
        """List the run under TensorBoard's hparams: its settings beside the last values of the `measured` curves."""
        given = {name: value for name, value in settings.items() if value is not None}
        values = {name: value if isinstance(value, int | float) else str(value) for name, value in given.items()}

        def add(writer: SummaryWriter) -> None:
            assert writer.file_writer
            for summary in hparams(values, dict.fromkeys(measured, 0.0)):
                writer.file_writer.add_summary(summary)

        self._write(add)

    def validation(
        self,
        step: int,
        scores: Mapping[str, float],
        panels: Mapping[str, Sequence[Sequence[torch.Tensor]]],
        settings: Mapping[str, object],
    ) -> None:
        """Add a validation: a point of each score, the run's settings beside the scores, and the panels."""
        points = {f"validation/{name.removeprefix('validation/')}": value for name, value in scores.items()}
        self.scalars(step, points)
        self.settings(settings, [name for name in points if "noisy" not in name])
        self.panels(step, panels)

    def panels(self, step: int, panels: Mapping[str, Sequence[Sequence[torch.Tensor]]]) -> None:
        """Add each set's rows of images [C, H, W] (noisy | denoised | reference), also as RUN/samples/*.png."""

        def add(writer: SummaryWriter) -> None:
            for name, rows in panels.items():
                if rows:
                    picture = join_panels(rows)
                    writer.add_image(f"{name}: noisy, denoised, reference", picture, step, dataformats="HWC")
                    path = self.run_dir / "samples" / f"{name}-{step:08d}.png"
                    path.parent.mkdir(exist_ok=True)
                    PIL.Image.fromarray(picture).save(path)

        self._write(add)

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self.main:
            self.bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Close the bar and the event file."""
        self.bar.close()
        self._write(SummaryWriter.close)

    def _write(self, add: Callable[[SummaryWriter], None]) -> None:
        if not self.main:
            return
        try:
            if self.writer is None:
                self.run_dir.stat()  # a removed run folder is not made again
                if not self.failed:  # a writer after a failure only adds, so that its order does not matter
                    self._wait_until_last()
                self.writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=self._purge_step)
                self._purge_step = None
            add(self.writer)
            self.writer.flush()
            self.failed = False
        except OSError as error:
            if not self.failed:
                why = error.strerror or error
                self.say(f"{self.run_dir}: curves and pictures cannot be written ({why}); going on without them")
            self.failed = True
            self.writer = None  # one that has failed is of no use any more

    def _wait_until_last(self) -> None:
        """Wait until a new event file would come last: TensorBoard reads them by name, and a name begins with a second.

        Points of a file that is read later would replace those of a continued run.
        """
        paths = (self.run_dir / "tensorboard").glob(f"events.out.tfevents.{10 * '[0-9]'}.*")
        last = max(paths, default=None)
        if last is None:
            return
        ahead = int(last.name.split(".")[3]) + 1 - time.time()
        if ahead > CLOCK_WAIT_SECONDS:
            self.say(
                f"{last}: dated {ahead:.0f} seconds ahead of this machine's clock, so TensorBoard shows its points "
                "instead of this run's; rename it, and all others dated ahead, to an earlier number, and set the clock "
                "that is wrong"
            )
        elif ahead > 0:
            time.sleep(ahead)


def duration(seconds: float) -> str:
    """Format a duration."""
    if seconds < 90:
        return f"{seconds:.1f} seconds"
    minutes = seconds / 60
    return f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
