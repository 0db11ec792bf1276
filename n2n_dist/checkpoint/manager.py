"""Checkpoints of a run: every rank copies its part, and a thread writes it while the training continues.

format.py describes the files. The tensors, 16 bytes for each parameter of the network, are divided over the ranks. Each
rank copies its part into buffers in its own memory (16 bytes for each parameter / number of ranks, kept until the run
ends; pinned where it computes on a GPU), which is all that the training waits for. On rank 0 the thread needs another 4
bytes for each parameter while it writes the best weights.
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
from torch import nn

from n2n_dist.checkpoint import format as files
from n2n_dist.checkpoint.format import Manifest, TrainState
from n2n_dist.checkpoint.tensors import StagingBuffers, named_tensors, partition_by_size
from n2n_dist.distributed.backend import Backend
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
        lost_error: Callable[[], UserError | None] = lambda: None,
    ) -> None:
        """Prepare the saves of a run; nothing is written yet.

        Args:
            run_dir: the run's folder.
            settings: when to write, and what to keep.
            backend: of the run.
            lost_error: returns why this run may write no more, such as `RunLock.lost_error`.

        """
        self.folder = run_dir / "checkpoints"
        self.best_weights = run_dir / BEST
        self.settings = settings
        self.backend = backend
        self.lost_error = lost_error
        self.group = backend.new_group()
        """Of the threads that write: the training uses the other ones meanwhile."""
        self.failure: StorageError | None = None
        """Why the last save failed, the same on all ranks."""
        self._saved_at = time.monotonic()
        self._buffers = StagingBuffers()
        self._thread: threading.Thread | None = None
        self._crash: BaseException | None = None
        self._finishing = False
        self._state: TrainState | None = None  # the caller's, of the save under way
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
        """Memory of this rank's copy of its part, from the first save on."""
        return self._buffers.bytes

    def save(self, model: Network, ema: nn.Module, optimizer: Any, state: TrainState) -> None:
        """Copy the tensors and return; a thread writes and commits them, then removes checkpoints beyond `keep`.

        Waits for the save before. Where writing fails (a full disk, a missing folder), rank 0 prints it and the
        training may continue: `failure` has the reason, and the next save tries again.

        Args:
            model: the network, after a step; its parameters must not have been replaced by those of a wrapper.
            ema: the moving average of its weights.
            optimizer: what `Backend.wrap` returned.
            state: of the run after that step. If its weights are the best so far, but cannot be saved, `wait` sets
                its `best` back to what is saved.

        """
        self.wait()
        self.backend.all_gather_or_raise(self.lost_error())
        shapes = named_tensors(model, ema, lambda p: dict.fromkeys(MOMENTS, p))
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in shapes}
        names = set(partition_by_size(sizes, self.backend.world_size)[self.backend.rank])
        tensors = named_tensors(model, ema, lambda p: self.backend.moments(optimizer, p))
        part = self._buffers.copy(tensors, names)
        copied = torch.cuda.Event() if self.backend.device.type == "cuda" else None
        if copied:
            copied.record()
        self._state, self._finishing = state, False
        manifest = Manifest(replace(state), self.backend.world_size, self.backend.name, model.metadata(), files={})
        self._thread = threading.Thread(target=self._run, args=(part, manifest, copied), name="checkpoint")
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
        if self._state and self.failure and self._state.best_step > self._best[1]:
            self._state.best, self._state.best_step = self._best

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
        """Find the newest checkpoint whose bytes are those that were written; quarantine damaged ones.

        The ranks share the digests. Unfinished files of a run that was killed are completed or removed.

        Args:
            warn: called on rank 0 with a line for each damaged checkpoint.

        Returns:
            Its folder and state, or None if there is no checkpoint at all.

        Raises:
            UserError: there are checkpoints, and all are damaged, or of a format that is not read here.

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
                self._best = (manifest.state.best, manifest.state.best_step)
                return path, manifest.state
            aside = self.backend.run_on_rank0(lambda path=path: files.quarantine(path))  # type: ignore[misc]
            if self.backend.is_main:
                warn(f"checkpoint {path.name} is damaged ({found}); set aside as {aside.name}")
        if self.backend.run_on_rank0(lambda: any(self.folder.glob("step-*.damaged"))):
            raise UserError(f"{self.folder}: all checkpoints are damaged; start in a new run.dir")
        return None

    def load(
        self, path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState
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
                steps = torch.tensor(float(state.step), device=device if group["fused"] else "cpu")
                optimizer.state[parameter] = {"step": steps, **moments}
        tensors = dict(named_tensors(model, ema, lambda p: {key: optimizer.state[p][key] for key in MOMENTS}))
        self.backend.run_on_all_ranks(lambda: files.load(path, tensors))
        self.backend.run_on_rank0(lambda: self._update_best_weights(state))

    def _run(self, part: dict[str, torch.Tensor], manifest: Manifest, copied: torch.cuda.Event | None) -> None:
        """Write and commit, in the thread; an error of the files ends it on all ranks alike."""
        try:
            if copied:
                copied.synchronize()
            self.failure = None
            self._write(part, manifest)
        except OSError as error:
            self.failure = self._describe(manifest.state, error)
            if self.backend.is_main and not self._finishing:  # which says it otherwise
                print(f"error: {self.failure}; the next save tries again", file=sys.stderr, flush=True)
        except BaseException as error:  # raised again in the main thread
            self._crash = error

    def _write(self, part: dict[str, torch.Tensor], manifest: Manifest) -> None:
        state = manifest.state
        partial = files.step_folder(self.folder, state.step).with_suffix(".tmp")
        self._on_main(lambda: files.make_partial(partial))
        try:
            entries = self._on_all(lambda: files.write_part(partial, self.backend.rank, part))

            def commit() -> None:
                if error := self.lost_error():  # this process may have been suspended since the beginning of the save
                    raise error
                manifest.files = {name: file for entry in entries for name, file in entry.items()}
                files.commit(partial, manifest)

            self._on_main(commit)
        except (OSError, UserError):
            if self.backend.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        self._best = (state.best, state.best_step)
        self._on_main(lambda: self._update_best_weights(state))
        self._on_main(lambda: files.prune(self.folder, self.settings.keep, state.best_step))

    def _update_best_weights(self, state: TrainState) -> None:
        """Write the weights of the best validation, if its checkpoint is there and they are not yet."""
        source = files.step_folder(self.folder, state.best_step)
        written = trained_steps(self.best_weights) == state.best_step
        if state.best is None or written or source not in files.list_checkpoints(self.folder):
            return
        try:
            if state.best_step != state.step:  # that of this step has just been written or verified
                files.verify(source, files.read_manifest(source).files)
        except files.DAMAGE as error:
            aside = files.quarantine(source)
            print(f"checkpoint {source.name} is damaged ({error}); set aside as {aside.name}", flush=True)
            return
        files.export(source, self.best_weights)

    def _describe(self, state: TrainState, error: OSError) -> StorageError:
        path = error.filename or files.step_folder(self.folder, state.step)
        room = "that folder is missing"
        with contextlib.suppress(OSError):
            room = f"{shutil.disk_usage(self.folder).free / 2**20:,.1f} MiB are free there"
        last = next(iter(files.list_checkpoints(self.folder)), None)
        return StorageError(
            f"{path}: step {state.step} could not be saved ({files.reason(error)}; {room}); make room or make the "
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
