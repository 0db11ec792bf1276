"""Checkpoints of a run: every rank copies its share, and a thread writes it while the training goes on.

What a checkpoint is stands in format.py. The tensors, 16 bytes for each parameter of the network, are dealt
over the ranks. Each rank copies its share into buffers in its own memory (16 bytes for each parameter / number of
ranks, kept until the run ends; pinned where it computes on a GPU), which is all that the training waits for. On rank 0
the thread needs another 4 bytes for each parameter while it writes the best weights.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from n2n_dist.checkpoint import format as files
from n2n_dist.checkpoint.format import Manifest, TrainState
from n2n_dist.distributed.backend import Backend
from n2n_dist.distributed.watchdog import peer_lost
from n2n_dist.distributed.zero import MOMENTS
from n2n_dist.errors import StorageError, UserError
from n2n_dist.models.network import Network
from n2n_dist.models.weights import BEST, trained_steps

T = TypeVar("T")


@dataclass
class CheckpointSettings:
    """When a checkpoint is written, and how many are kept."""

    every: int = 1000
    """Steps between two checkpoints; one is always written at the end."""
    minutes: float = 10.0
    """Minutes after which one is written anyway."""
    keep: int = 2
    """Newest checkpoints that are kept, 2 or more: the newest one may be found damaged. The best is kept as well."""

    def __post_init__(self) -> None:
        if self.every < 1 or not self.minutes > 0:
            raise UserError(f"checkpoint.every {self.every}, checkpoint.minutes {self.minutes}: must be above 0")
        if self.keep < 2:
            raise UserError(f"checkpoint.keep {self.keep}: must be 2 or more, because the newest may be found damaged")


class Checkpoints:
    """The checkpoints and the best weights of a run folder. All ranks call every method, in the same order."""

    def __init__(
        self,
        run_dir: Path,
        settings: CheckpointSettings,
        backend: Backend,
        problem: Callable[[], UserError | None] = lambda: None,
    ) -> None:
        """Write nothing yet.

        Args:
            run_dir: the run's folder.
            settings: when to write, and what to keep.
            backend: of the run.
            problem: says why this run may write no more, such as that the folder is another run's by now.

        """
        self.folder = run_dir / "checkpoints"
        self.best_weights = run_dir / BEST
        self.settings = settings
        self.backend = backend
        self.problem = problem
        self.group = backend.new_group()
        """Of the threads that write: the training uses the other ones meanwhile."""
        self.failure: StorageError | None = None
        """Why the last save failed, the same on all ranks."""
        self._saved_at = time.monotonic()
        self._buffers: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._crash: BaseException | None = None
        self._finishing = False
        self._progress: TrainState | None = None
        """The caller's, of the save under way."""
        self._best: tuple[float | None, int] = (None, 0)
        """Score in dB and step of the best validation whose weights are saved."""

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def minutes_since_save(self) -> float:
        """Minutes since the last save began, or since the start, by this rank's clock."""
        return (time.monotonic() - self._saved_at) / 60

    @property
    def staged_bytes(self) -> int:
        """Memory of this rank's copy of its share, from the first save on."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def save(self, model: Network, ema: nn.Module, optimizer: Any, progress: TrainState) -> None:
        """Copy what a checkpoint holds and return; a thread writes and commits it, then removes those beyond `keep`.

        Waits for the save before. Where writing fails (a full disk, a folder that is gone), rank 0 says so and the
        training may go on: `failure` has the reason, and the next save tries again.

        Args:
            model: the network, after a step; its parameters must not have been replaced by those of a wrapper.
            ema: the moving average of its weights.
            optimizer: what `Backend.wrap` returned.
            progress: where the run stands. If its weights are the best so far, but cannot be saved, its `best` falls
                back to what is saved (in `wait`).

        """
        self.wait()
        self.backend.all_gather_or_raise(self.problem())
        shapes = files.named_tensors(model, ema, lambda p: dict.fromkeys(MOMENTS, p))
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in shapes}
        mine = set(files.partition_by_size(sizes, self.backend.world_size)[self.backend.rank])
        share = {}
        for name, tensor in files.named_tensors(
            model, ema, lambda parameter: self.backend.moments(optimizer, parameter)
        ):
            if name in mine:
                if name not in self._buffers:
                    self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                share[name] = self._buffers[name].copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event() if self.backend.device.type == "cuda" else None
        if copied:
            copied.record()
        self._progress, self._finishing = progress, False
        contents = share, replace(progress), model.metadata(), copied
        self._thread = threading.Thread(target=self._run, args=contents, name="checkpoint")
        self._thread.start()
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Wait until the last save is committed or has failed; returns at once where nothing is under way.

        Raises:
            Exception: what stopped the thread other than its files, such as the end of another rank.

        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._crash is not None:
            raise self._crash
        if self._progress and self.failure and self._progress.best_step > self._best[1]:
            self._progress.best, self._progress.best_step = self._best

    def finish(self) -> None:
        """Wait for the last save, without which the run cannot end well.

        Raises:
            StorageError: on all ranks, if it failed.

        """
        self._finishing = True
        self.wait()
        if self.failure:
            raise self.failure

    def close(self) -> None:
        """Wait until nothing is written any more, whatever came of it: only then may another run have the folder."""
        if self._thread is not None:
            self._thread.join()

    def newest(self, warn: Callable[[str], None]) -> tuple[Path, TrainState] | None:
        """Find the newest checkpoint whose bytes are those that were written; damaged ones are set aside.

        The ranks share the digests. What a run that died left half done is finished or removed.

        Args:
            warn: told of damage, on rank 0.

        Returns:
            Its folder and progress, or None if there is no checkpoint at all.

        Raises:
            UserError: there are checkpoints, and all are damaged, or of another version of this package.

        """
        self.backend.run_on_rank0(lambda: files.recover(self.folder))
        for path in self.backend.run_on_rank0(lambda: files.list_checkpoints(self.folder)):
            manifest, refusal, damage = None, None, None
            try:
                manifest = files.read_manifest(path)
                names = sorted(manifest.files)[self.backend.rank :: self.backend.world_size]
                files.verify(path, {name: manifest.files[name] for name in names})
            except UserError as error:
                refusal = error
            except files.DAMAGE as error:
                damage = str(error)
            found = next(filter(None, self.backend.all_gather_or_raise(refusal, damage)), None)
            if found is None and manifest:
                self._best = (manifest.progress.best, manifest.progress.best_step)
                return path, manifest.progress
            aside = self.backend.run_on_rank0(lambda path=path: files.quarantine(path))  # type: ignore[misc]
            if self.backend.is_main:
                warn(f"checkpoint {path.name} is damaged ({found}); set aside as {aside.name}")
        if self.backend.run_on_rank0(lambda: any(self.folder.glob("step-*.damaged"))):
            raise UserError(f"{self.folder}: all checkpoints are damaged; start in a new run.dir")
        return None

    def load(
        self, path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, progress: TrainState
    ) -> None:
        """Read a verified checkpoint into model, average and optimiser, in place and before they are wrapped.

        The best weights are written again where a run died before it came to that. Under ZeRO every rank holds all
        moments (8 bytes for each parameter) on the CPU until `Backend.wrap` spreads them.

        Raises:
            UserError: the checkpoint does not hold these tensors.

        """
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                device = torch.device("cpu") if self.backend.zero else parameter.device
                moments = {key: torch.empty_like(parameter, device=device) for key in MOMENTS}
                steps = torch.tensor(float(progress.step), device=device if group["fused"] else "cpu")
                optimizer.state[parameter] = {"step": steps, **moments}
        tensors = dict(files.named_tensors(model, ema, lambda p: {key: optimizer.state[p][key] for key in MOMENTS}))
        self.backend.run_on_all_ranks(lambda: files.load(path, tensors, self.group))
        self.backend.run_on_rank0(lambda: self._update_best_weights(progress))

    def _run(
        self,
        share: dict[str, torch.Tensor],
        progress: TrainState,
        network: dict[str, Any],
        copied: torch.cuda.Event | None,
    ) -> None:
        """Write and commit in a thread; failures to read or write end it on all ranks alike."""
        try:
            if copied:
                copied.synchronize()
            self.failure = None
            self._write(share, progress, network)
        except OSError as error:
            self.failure = self._describe(progress, error)
            if self.backend.is_main and not self._finishing:  # which says it otherwise
                print(f"error: {self.failure}; the next save tries again", file=sys.stderr, flush=True)
        except BaseException as error:  # raised again in the main thread
            self._crash = error

    def _write(self, share: dict[str, torch.Tensor], progress: TrainState, network: dict[str, Any]) -> None:
        final = files.step_folder(self.folder, progress.step)
        partial = final.with_suffix(".tmp")
        self._on_main(lambda: self._make_empty(partial))
        try:
            # nothing is copied ahead: everything is in buffers of its own
            writer = dcp.FileSystemWriter(partial, per_thread_copy_ahead=0)
            try:
                dcp.save(share, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
            except CheckpointException as error:  # no Exception, and raised on all ranks
                for cause, _ in error.failures.values():
                    if peer_lost(cause):
                        raise cause from None
                raise OSError(files.reason(error)) from None
            digests = self._on_all(
                lambda: {path.name: files.sha256(path) for path in partial.glob(f"__{self.backend.rank}_*")}
            )

            def commit() -> None:
                if refusal := self.problem():  # this process may have stood still since the beginning of the save
                    raise refusal
                written = {name: digest for part in digests for name, digest in part.items()}
                written[".metadata"] = files.sha256(partial / ".metadata")
                files.commit(partial, Manifest(progress, self.backend.world_size, self.backend.name, network, written))

            self._on_main(commit)
        except (OSError, UserError):
            if self.backend.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        self._best = (progress.best, progress.best_step)
        self._on_main(lambda: self._update_best_weights(progress))
        self._on_main(lambda: self._prune(progress))

    def _make_empty(self, partial: Path) -> None:
        self.folder.mkdir(exist_ok=True)  # not its parents: a run folder that is gone stays gone
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()

    def _update_best_weights(self, progress: TrainState) -> None:
        """Write the weights of the best validation, if its checkpoint is there and they are not yet."""
        source = files.step_folder(self.folder, progress.best_step)
        written = trained_steps(self.best_weights) == progress.best_step
        if progress.best is None or written or source not in files.list_checkpoints(self.folder):
            return
        try:
            if progress.best_step != progress.step:  # that of this step has just been written or verified
                files.verify(source, files.read_manifest(source).files)
        except files.DAMAGE as error:
            aside = files.quarantine(source)
            print(f"checkpoint {source.name} is damaged ({error}); set aside as {aside.name}", flush=True)
            return
        files.export(source, self.best_weights)

    def _prune(self, progress: TrainState) -> None:
        best = files.step_folder(self.folder, progress.best_step)
        for old in files.list_checkpoints(self.folder)[self.settings.keep :]:
            if old != best:
                files.remove(old)

    def _describe(self, progress: TrainState, error: OSError) -> StorageError:
        path = error.filename or files.step_folder(self.folder, progress.step)
        room = "that folder is gone"
        with contextlib.suppress(OSError):
            room = f"{shutil.disk_usage(self.folder).free / 2**20:,.1f} MiB are free there"
        last = next(iter(files.list_checkpoints(self.folder)), None)
        return StorageError(
            f"{path}: step {progress.step} could not be saved ({files.reason(error)}; {room}); make room or make the "
            f"folder writable. The last good checkpoint is {last.name if last else 'none'}"
        )

    def _on_main(self, action: Callable[[], None]) -> None:
        self._on_all(lambda: action() if self.backend.is_main else None)

    def _on_all(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank, in the thread; return all results, or raise on all what one could not do."""
        result, failure = None, None
        try:
            result = action()
        except Exception as error:  # known to all, or they would wait for this one
            failure = error
        return self.backend.all_gather_or_raise(failure, result, self.group)
