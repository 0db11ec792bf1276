"""Memory and time of the loader, the order and the index where data sets are large, each in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.figures import Figure
from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.shards.index import INDEX, Shard
from n2n_dist.shards.records import FORMAT

SHARDS = 200, 4000
"""Shards between which the memory of the loader should not grow."""
RANKS = (256, 0, 1), (4096, 0, 1), (4096, 4095, 4096), (16384, 4095, 4096)
"""Batch, rank and world size whose order is timed."""
LISTED = 100_000
"""Shards of the index that is opened, of 1000 samples each."""

READ = """
import multiprocessing, re, sys, torch
from pathlib import Path
from n2n_dist.data.dataset import CropDataset
from n2n_dist.data.sampler import RankOrder
from n2n_dist.data.loader import make_loader
from n2n_dist.data.order import Order
from n2n_dist.pairs import Synthetic
from n2n_dist.shards.index import Index
index = Index([Path(sys.argv[1])])
batches = RankOrder(Order(index.sizes, 0, 64), 0, 0, 1, 64)
loader = make_loader(CropDataset(index, 0, 128, Synthetic()), batches, 1, torch.device("cpu"))
for _ in range(500):
    next(loader)
processes = "self", multiprocessing.active_children()[0].pid
print(*(int(re.search("VmHWM: *(.*) kB", Path(f"/proc/{p}/status").read_text())[1]) // 1024 for p in processes))
"""


def memory(folder: Path) -> Iterator[Figure]:
    """Peak memory of training process and worker over 32,000 crops, with 200 shards and with 20 times as many."""
    build(folder / "photographs", folder / "small", Options(shard_samples=1))
    tars = sorted((folder / "small").glob("*.tar"))
    shards = {s["name"]: s for s in json.loads((folder / "small" / INDEX).read_text())["shards"]}
    for count in SHARDS:
        many = folder / f"{count}-shards"
        many.mkdir()
        listed = []
        for number, tar in zip(range(count), itertools.cycle(tars), strict=False):
            for suffix in (".tar", ".index.json"):
                os.link(tar.with_suffix(suffix), many / f"{number}{suffix}")
            listed.append(shards[tar.name] | {"name": f"{number}.tar"})
        (many / INDEX).write_text(json.dumps({"format": FORMAT, "shards": listed}))
        main, worker = map(float, _run(READ, str(many)).split())
        yield Figure(f"memory with {count} shards, training process", [main], "MiB", "at most")
        yield Figure(f"memory with {count} shards, worker", [worker], "MiB", "at most")


FIRST_BATCH = """
import re, sys, time
from pathlib import Path
import numpy as np
from n2n_dist.data.order import Order
batch, rank, world = map(int, sys.argv[1:])
order, share = Order(np.full(100_000, 1000), 0, batch), batch // world
seen = 10**9 // batch * batch
part = rank * share, rank * share + share
order.batch(seen, *part)
since = time.time()
times = []
for step in range(1, 201):
    start = time.process_time()
    order.batch(seen + step * batch, *part).tolist()
    times.append(time.process_time() - start)
peak = re.search("VmHWM: *(.*) kB", Path("/proc/self/status").read_text())[1]
print(since, np.median(times) * 1e3, int(peak) // 1024)
"""

OPEN = """
import re, sys, time
from pathlib import Path
from n2n_dist.shards.index import Index
start = time.process_time()
index = Index([Path(sys.argv[1])])
peak = re.search("VmHWM: *(.*) kB", Path("/proc/self/status").read_text())[1]
print(len(index), time.process_time() - start, int(peak) // 1024)
"""


def scale() -> Iterator[Figure]:
    """Time and memory of the order and the index of 10^5 shards with 10^8 samples."""
    for batch, rank, world in RANKS:
        start = time.time()
        since, middle, peak = map(float, _run(FIRST_BATCH, str(batch), str(rank), str(world)).split())
        name = f"order of 10^8 samples, batch {batch}, rank {rank} of {world}"
        yield Figure(f"{name}, first batch", [since - start], "s", "from the start of Python")
        yield Figure(f"{name}, next batches", [middle], "ms", "each")
        yield Figure(f"{name}, memory", [peak], "MiB")
    with tempfile.TemporaryDirectory() as name:
        shards = []
        for number in range(LISTED):
            digest = f"{number:064x}"
            shard = Shard(f"{number:06d}.tar", 1000, 200_000_000, digest, 1, digest, [3], 1, False, (256, 256))
            with (Path(name) / shard.name).open("wb") as file:
                file.truncate(shard.bytes)  # takes no space
            (Path(name) / f"{number:06d}.index.json").write_bytes(b" ")
            shards.append(asdict(shard))
        (Path(name) / INDEX).write_text(json.dumps({"format": FORMAT, "shards": shards}))
        samples, seconds, peak = map(float, _run(OPEN, name).split())
    yield Figure(f"index of {LISTED} shards, {samples:.0f} samples, opened in", [seconds], "s")
    yield Figure(f"index of {LISTED} shards, {samples:.0f} samples, memory", [peak], "MiB")


def _run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
