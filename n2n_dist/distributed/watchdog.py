"""The end of a run of which one process dies or hangs: the others notice, name it, and end.

A process that dies closes its connections, and the others' libraries raise an error at once. One that hangs, or a
machine that loses its power, closes nothing: a thread notices that there is no progress. It ends the process itself,
because the main thread may be deep in a library, and NCCL has no error to raise there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch.distributed as dist

from n2n_dist.errors import PeerLostError

TICK_SECONDS = 1.0
ANSWER_SECONDS = 5.0
"""How long the processes that are alive are given to answer; all of them notice within a step and a tick."""
MARGIN_SECONDS = 60.0
"""By how much the libraries' own timeouts are later: their messages name no process."""
PEER_LOST = re.compile(r"closed|reset|broken pipe|timed? ?out|remote process|ncclRemoteError", re.IGNORECASE)
"""Messages of gloo, NCCL and torch's store where another process gives no answer."""
CONTINUE = "the same command continues after the last checkpoint"


def peer_lost(error: BaseException) -> PeerLostError | None:
    """Return the error to report where one of torch.distributed means that another process has died; else None."""
    text = " ".join(str(error).split())
    ours = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)
    if not ours or not PEER_LOST.search(text):
        return None
    return PeerLostError(
        f"another process of this run was lost ({text[:200]}). It was killed, ran out of memory or failed with a "
        f"message of its own, or the network did; {CONTINUE}"
    )


class Watchdog:
    """Ends this process when the run makes no progress."""

    def __init__(self, timeout: float, on_loss: Callable[[PeerLostError], None]) -> None:
        """Prepare; `start` begins.

        Args:
            timeout: seconds without progress. Only those are counted in which this process runs: one that is stopped
                together with all others, as schedulers do, has missed nothing.
            on_loss: called before the process ends.

        """
        self.timeout = timeout
        self.on_loss = on_loss
        self._ticks = 0
        self._stopped = threading.Event()

    def start(self, rank: int, hosts: Sequence[str]) -> None:
        """Begin to watch; `hosts` names the machine of each rank."""
        self._rank, self._hosts = rank, hosts
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def progress(self) -> None:
        """Note a collective that has succeeded."""
        self._ticks = 0

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            self._ticks += 1
            if self._ticks * TICK_SECONDS > self.timeout:
                break
        else:
            return
        missing: list[int] = [0]  # whose process may hold the store
        call = threading.Thread(target=self._call, args=(missing,), daemon=True)
        call.start()
        call.join(2 * ANSWER_SECONDS)
        lost = self._describe(missing)
        os.write(2, f"error: {lost}\n".encode())
        self.on_loss(lost)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)

    def _call(self, missing: list[int]) -> None:
        """Reduce `missing` to the ranks that give no answer."""
        names = [f"n2n_dist/answer/{rank}" for rank in range(len(self._hosts))]
        with contextlib.suppress(dist.DistError):  # the process that holds the store has ended
            store = dist.distributed_c10d._get_default_store().clone()  # a connection of its own
            store.set(names[self._rank], "here")
            try:
                store.wait(names, timedelta(seconds=ANSWER_SECONDS))
                missing.clear()
            except dist.DistStoreError:  # not all have answered
                missing[:] = [rank for rank, name in enumerate(names) if not store.check([name])]

    def _describe(self, missing: Sequence[int]) -> PeerLostError:
        text = f"train.timeout {self.timeout:g}: no progress for so many seconds"
        if missing:
            named = ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in missing[:4])
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            return PeerLostError(f"{text}, and no answer from {named}{more}: it is stopped or has died; {CONTINUE}")
        return PeerLostError(
            f"{text}, although all processes are alive: one of them waits for its storage, or a step takes as long; "
            f"raise it in that case. {CONTINUE[0].upper() + CONTINUE[1:]}"
        )
