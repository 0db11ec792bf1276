"""The batch scripts on a real Slurm of two nodes; the tests run one after the other, on the same cluster."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm.cluster import Cluster, environment, missing
from support import processes
from support.documents import SHORT, checkout, commands
from support.images import random_pixels

import n2n_dist
from n2n_dist.building.build import build
from n2n_dist.building.plan import BUILDING, Options
from n2n_dist.images.image import write_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(700),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
HERE = Path(__file__).parent
STEPS = 240
"""At a second a step, more than three starts of a job with a time limit of a minute make."""
SETTINGS = (*processes.TINY, "checkpoint.every=5")
TRAIN, EVALUATE, SHARD = (f"launch/slurm/{name}.sbatch" for name in ("train", "evaluate", "shard"))
WITHOUT_GPU = ("--gpus-per-node=0", "--cpus-per-task=1")
MINUTES = 5
"""For a job to start, or to end, on a machine that is busy."""


@dataclass
class Job:
    """A job, and the checkout from which it was submitted."""

    cluster: Cluster
    folder: Path
    number: str

    def state(self) -> dict[str, str]:
        return self.cluster.job(self.number)

    def output(self) -> str:
        """Return what the batch script said."""
        files = [path for path in self.folder.glob(f"*-{self.number}.out") if len(path.suffixes) == 1]
        return "".join(path.read_text() for path in files)

    def nodes(self) -> dict[str, str]:
        """Return the output of each node."""
        return {path.suffixes[-2][1:]: path.read_text() for path in self.folder.glob(f"*-{self.number}.*.out")}

    def report(self) -> str:
        return "\n".join([str(self.state()), self.output(), *self.nodes().values(), self.cluster.logs()])

    def wait(self, state: str, minutes: float = MINUTES) -> dict[str, str]:
        return self.cluster.wait(self.number, state, 60 * minutes, self.report)

    def until(self, reached: Callable[[], bool], minutes: float = MINUTES) -> None:
        def still() -> bool:
            running = self.state()["JobState"] in ("PENDING", "RUNNING", "COMPLETING")
            there = reached()
            assert there or running, self.report()
            return there

        self.cluster.until(still, 60 * minutes, self.report)

    def processes(self) -> list[str]:
        """Return the command lines that name its folder, on all nodes."""
        return [line for line in self.cluster.processes() if str(self.folder) in line]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "run" / "checkpoints").glob("step-????????"))

    def let_go(self) -> None:
        """From now on steps take no longer than they need."""
        (self.folder / "go").touch()


def submit(cluster: Cluster, folder: Path, *command: object, slow: bool = False, **variables: str) -> Job:
    """Run sbatch; a `slow` job waits to be let go, see slow/sitecustomize.py."""
    variables = environment() | variables
    if slow:
        variables["PYTHONPATH"] = f"{HERE / 'slow'}:{variables['PYTHONPATH']}"
    return Job(cluster, folder, cluster.run("sbatch", "--parsable", *command, folder=folder, **variables).strip())


def training(cluster: Cluster, folder: Path, *options: str, settings: tuple[str, ...] = (), slow: bool = True) -> Job:
    command = (*WITHOUT_GPU, *options, TRAIN, *SETTINGS, f"train.steps={STEPS}", f"run.dir={folder / 'run'}", *settings)
    return submit(cluster, folder, *command, slow=slow)


def urgent(cluster: Cluster, folder: Path) -> None:
    """Run a job for which there is no room beside one with twelve processors a node."""
    options = ("--partition=high", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=8")
    job = submit(cluster, folder, *options, "--output=urgent.out", "--wrap=sleep 3")
    job.wait("COMPLETED")


def weights(folder: Path) -> bytes:
    return (folder / "run" / "last.safetensors").read_bytes()


@pytest.fixture(scope="module")
def limited(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job with a time limit of a minute; it goes on while others are tested."""
    folder = checkout(tmp_path_factory.mktemp("slurm") / "limited")
    return training(cluster, folder, "--nodes=2", "--time=1", "--signal=B:USR1@10")


@pytest.fixture(scope="module")
def whole(cluster: Cluster, limited: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The same run without interruption."""
    job = training(cluster, checkout(tmp_path_factory.mktemp("slurm") / "whole"), "--nodes=2", slow=False)
    job.wait("COMPLETED")
    return job


def test_the_nodes_of_a_job_are_one_world(cluster: Cluster, whole: Job) -> None:
    assert sorted(whole.nodes()) == cluster.nodes
    first, second = (whole.nodes()[name] for name in cluster.nodes)
    assert "world    DDP: 2 process(es) on 2 machines (" in first
    assert "world " not in second
    assert f"done: {STEPS} steps" in first
    assert whole.output().endswith(" done\n")
    assert len({cluster.run("hostname", "-I", host=node) for node in cluster.nodes}) == 2


def test_every_gpu_gets_a_process_and_scancel_ends_them_all(cluster: Cluster, whole: Job, tmp_path: Path) -> None:
    job = training(cluster, checkout(tmp_path / "root"), "--nodes=2", "--gpus-per-node=2", "--cpus-per-task=2")
    job.until(lambda: len(job.checkpoints()) > 0)
    assert "machines.yaml, 2 process(es) a node" in job.output()
    assert "world    DDP: 4 process(es) on 2 machines (" in job.nodes()[cluster.nodes[0]]  # the cluster's GPUs are none
    assert len(job.processes()) > 4

    cluster.run("scancel", job.number)
    job.wait("CANCELLED")
    cluster.until(lambda: not job.processes(), 45)
    assert (job.folder / "run" / "PREEMPTED").read_text().startswith("stopped by SIGTERM: saved after step ")
    time.sleep(10)  # a requeued job waits for six seconds
    assert job.state()["JobState"] == "CANCELLED"
    assert job.state()["Restarts"] == "0"
    assert "TERM, by scancel, by a preemption or at the time limit: not requeued by this script\n" in job.output()
    there, here = (processes.curves(of.folder / "run")["train/total"] for of in (whole, job))
    assert here[1] == pytest.approx(there[1], rel=1e-5)


def test_deepspeed_on_two_nodes_is_one_world(cluster: Cluster, whole: Job, tmp_path: Path) -> None:
    folder = checkout(tmp_path / "root")
    command = (*WITHOUT_GPU, "--nodes=2", TRAIN, *SETTINGS, "train.steps=3", "run.dir=run")
    job = submit(cluster, folder, *command, BACKEND="zero1")
    job.wait("COMPLETED")
    assert "world    ZeRO-1: 2 process(es) on 2 machines (" in job.nodes()[cluster.nodes[0]]
    there, here = (processes.curves(of.folder / "run")["train/total"] for of in (whole, job))
    assert here[1] == pytest.approx(there[1], rel=1e-5)


def test_a_preempted_job_goes_on_to_the_same_weights(cluster: Cluster, whole: Job, tmp_path: Path) -> None:
    folder = checkout(tmp_path / "root")
    (folder / "wait").touch()
    job = training(cluster, folder, "--nodes=2", "--partition=low", "--cpus-per-task=12")
    job.until(lambda: sum("/bin/accelerate launch" in line for line in job.processes()) == 2)
    urgent(cluster, tmp_path)  # while nothing but the launchers is there
    job.until(lambda: job.state()["Restarts"] == "1")
    (folder / "wait").unlink()
    assert "requeued: preempted while it started" in job.output()

    job.until(lambda: len(job.checkpoints()) > 0)
    urgent(cluster, tmp_path)
    job.until(lambda: job.state()["Restarts"] == "2")
    assert "requeued: stopped by SIGTERM: saved after step " in job.output()
    job.let_go()
    job.wait("COMPLETED")
    assert weights(job.folder) == weights(whole.folder)


def test_the_guide_can_be_followed(cluster: Cluster, tmp_path: Path) -> None:
    folder = checkout(tmp_path / "root")
    for number in range(20):
        write_image(folder / "photos" / f"{number}.png", random_pixels((64, 64, 3), seed=number))
        write_image(folder / "Kodak" / f"{number % 2}.png", random_pixels((64, 64, 3), seed=number))
    job, jobs = None, []
    for command in commands("docs/cluster.md"):
        words = command.replace("JOB", job.number if job else "").replace("NODE", cluster.nodes[0]).split()
        if words[0] == "sbatch":
            if SHARD in words and (folder / "shards/mine").exists():
                shutil.rmtree(folder / "shards/mine")  # another way to make the same
            job = submit(cluster, folder, *words[1:], *(SHORT if TRAIN in words else ()))
            jobs.append(job)
            if not words[1].startswith("--array"):  # the merge waits for it
                job.wait("COMPLETED")
        elif words[0] != "tensorboard":
            shown = cluster.run(*words[:1], *("-n1" if word == "-f" else word for word in words[1:]), folder=folder)
            assert shown
    assert len(jobs) == 8
    *_, dry, gpus, _, either, evaluation = jobs
    first = cluster.nodes[0]
    assert " an epoch, " in dry.nodes()[first]
    assert "world    DDP: 4 process(es) on 2 machines (" in gpus.nodes()[first]
    assert sorted(either.nodes()) == cluster.nodes
    arguments = ("--run", folder / "runs/mine", "--images", folder / "Kodak", "--output", tmp_path / "alone")
    table = processes.run("launch/evaluate.py", *arguments).checked().out[0].splitlines()[:4]
    assert table[-1].startswith("mean of 2 ")
    assert evaluation.nodes()[first].splitlines()[:4] == table


def test_a_time_limit_that_ends_a_job_three_times_changes_nothing(cluster: Cluster, limited: Job, whole: Job) -> None:
    limited.until(lambda: limited.output().count("requeued: stopped by SIGUSR1: saved after step ") >= 3, minutes=8)
    limited.let_go()
    restarts = int(limited.wait("COMPLETED")["Restarts"])
    assert limited.output().count("requeued: ") == restarts
    assert weights(limited.folder) == weights(whole.folder)
    there, here = (processes.curves(job.folder / "run")["train/total"] for job in (whole, limited))
    assert list(here.items()) == list(there.items())


def test_a_job_array_builds_what_one_process_builds(
    cluster: Cluster, tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    images = write_images(*(f"{number}.png" for number in range(6)), size=(64, 64, 3))
    build(images, tmp_path / "alone", Options(tile=16, shard_samples=1))  # six groups of tars
    folder, settings = checkout(tmp_path / "root"), ("--tile", "16", "--shard-samples", "1")
    new, groups = tmp_path / "new", tmp_path / "new.partial" / BUILDING
    array = submit(cluster, folder, "--array=1-3", "--cpus-per-task=1", SHARD, images, new, *settings, slow=True)
    merge = ("--dependency=afterok:" + array.number, "--kill-on-invalid-dep=yes", "--cpus-per-task=1", SHARD)
    merged = submit(cluster, folder, *merge, "index", new)
    # one of them meets its time limit in the second of its two groups
    cluster.until(lambda: len(list(groups.glob("group-*.json"))) == 3, 60 * MINUTES, array.report)
    shards = [shard for group in groups.glob("group-*.json") for shard in json.loads(group.read_text())["shards"]]
    written = {shard["name"]: (groups.parent / shard["name"]).stat().st_mtime_ns for shard in shards}
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array.number}_1")
    cluster.until(lambda: cluster.job(f"{array.number}_1")["Restarts"] == "1", 60 * MINUTES, array.report)
    array.let_go()
    merged.wait("COMPLETED")
    assert {name: (new / name).stat().st_mtime_ns for name in written} == written
    files = {path.relative_to(new): path.read_bytes() for path in new.rglob("*") if path.is_file()}
    assert len(files) == 2 * 96 + 1
    assert all((tmp_path / "alone" / name).read_bytes() == content for name, content in files.items())
    assert "96 tiles of 6 scenes" in merged.output()

    wrong = submit(cluster, folder, "--array=2-3", "--cpus-per-task=1", SHARD, images, tmp_path / "other")
    for task in "23":
        cluster.wait(f"{wrong.number}_{task}", "FAILED", 60 * MINUTES, wrong.report)
    assert wrong.output().splitlines()[-1].startswith("error: --array must be 1-N")


def test_slurm_takes_the_commands_in_the_scripts(cluster: Cluster, whole: Job) -> None:
    lines = [line.lstrip("# ") for name in (TRAIN, EVALUATE, SHARD) for line in (processes.ROOT / name).open()]
    found = [line for line in (*lines, *commands("README.md")) if line.startswith("sbatch ")]
    assert len(found) >= 7
    for command in found:
        words = command.replace("JOB", whole.number).split()
        cluster.run(words[0], "--test-only", *words[1:], folder=whole.folder)


def test_what_is_wrong_is_said_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    folder = checkout(tmp_path / "root")
    for option, message in (
        ("--partition=nowhere", "invalid partition specified: nowhere"),
        ("--gpus-per-node=3", "Requested node configuration is not available"),
    ):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            submit(cluster, folder, option, TRAIN)
        assert message in caught.value.stderr
    long = submit(cluster, folder, *WITHOUT_GPU, "--partition=short", "--time=20", TRAIN)
    long.until(lambda: long.state()["Reason"] == "PartitionTimeLimit")
    cluster.run("scancel", long.number)

    job = submit(cluster, folder, *WITHOUT_GPU, "--nodes=2", TRAIN, *SETTINGS, "run.dir=run", "data.shards=nowhere")
    misspelt = submit(cluster, folder, *WITHOUT_GPU, TRAIN, *SETTINGS, "run.dir=run", "data.bacth=4")
    command = (*WITHOUT_GPU, TRAIN, *SETTINGS)
    weightless = submit(cluster, folder, *WITHOUT_GPU, EVALUATE, "--run", "nowhere", "--images", "nowhere")
    without = submit(cluster, folder, *command, PATH="/usr/bin")
    elsewhere = submit(cluster, tmp_path, *WITHOUT_GPU, processes.ROOT / TRAIN, *SETTINGS)
    for failing, line in (
        (without, "error: accelerate: not found on node-"),
        (misspelt, "error: data.bacth: unknown setting (did you mean data.batch?)"),
        (weightless, "error: nowhere: no weights there"),
        (
            job,
            f"error: on {cluster.nodes[0]}: nowhere: no such folder of shards; make one with: ",
        ),
        (elsewhere, f"error: {tmp_path} is not the root of the repository; submit from there"),
    ):
        state = failing.wait("FAILED")
        assert failing.output().splitlines()[-1].startswith(line)
        assert state["Restarts"] == "0"


def test_a_node_that_differs_from_the_others_is_named(cluster: Cluster, tmp_path: Path) -> None:
    folder, second = checkout(tmp_path / "root"), cluster.nodes[1]
    package, shards, run_dir = tmp_path / "package", folder / "shards/mine", folder / "run"
    shutil.copytree(processes.ROOT / "n2n_dist", package / "n2n_dist", ignore=shutil.ignore_patterns("weights"))
    module, other = package / "n2n_dist/version.py", tmp_path / "other.py"
    other.write_text(module.read_text().replace(n2n_dist.__version__, "0.0.0"))
    shutil.copytree(processes.ROOT / "shards/demo/train", shards)
    for path in (run_dir, tmp_path / "empty"):
        path.mkdir()
    # what the second node sees in these places
    cluster.run("mount", "--bind", other, module, host=second)
    cluster.run("mount", "--bind", tmp_path / "empty", shards, host=second)
    cluster.run("mount", "--bind", run_dir, run_dir, host=second)
    cluster.run("mount", "-o", "remount,bind,ro", run_dir, host=second)

    command = (*WITHOUT_GPU, "--nodes=2", TRAIN, *SETTINGS)
    old = submit(cluster, folder, *command, "run.dir=old", PYTHONPATH=str(package))
    blind = submit(cluster, folder, *command, "run.dir=blind", f"data.shards={shards}")
    locked = submit(cluster, folder, *command, f"run.dir={run_dir}")
    for failing, line in (
        (old, f"error: {second}: has n2n_dist 0.0.0 (sources "),
        (blind, f"error: on {second}: {shards}: no "),
        (locked, f"error: on {second}: run.dir {run_dir}: cannot be written (Read-only file system); make it writable"),
    ):
        failing.wait("FAILED")
        assert failing.output().splitlines()[-1].startswith(line)


def test_a_lost_node_is_not_waited_for(cluster: Cluster, whole: Job, tmp_path: Path) -> None:
    first, second = cluster.nodes
    cluster.until(lambda: cluster.idle() == cluster.nodes, 60 * MINUTES)
    job = training(cluster, checkout(tmp_path / "root"), "--nodes=1-2")
    job.until(lambda: len(job.checkpoints()) > 0)
    assert job.nodes().keys() == {first, second}
    cluster.configure("SlurmdTimeout", 300)  # the default, after which Slurm notices
    cluster.power_off(second)
    job.until(lambda: "requeued: a node does not answer" in job.output())
    cluster.configure("SlurmdTimeout", 15)
    job.until(lambda: job.state()["Restarts"] == "1")

    job.let_go()
    assert job.wait("COMPLETED")["NodeList"] == first
    assert "continuing after step " in job.nodes()[first]
    cluster.power_on(second)
    there, here = (processes.curves(of.folder / "run")["train/total"] for of in (whole, job))
    assert list(here) == list(there)
    assert list(here.values()) == pytest.approx(list(there.values()), rel=1e-3)
