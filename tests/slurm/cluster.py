"""A real Slurm on one machine, for root on Debian: a controller and nodes, each in namespaces of its own.

Every host has its own network with an address of its own, processes and host name. Killing a host's first process
takes all its processes and its network away at once, as a loss of power would; nothing that Slurm started can outlive
it. Slurm's own files and services on the machine are neither used nor changed.
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = ("slurmctld", "slurmd", "munged", "nsenter", "unshare", "ip", "setpriv")
FREEZER = Path("/sys/fs/cgroup/freezer")
CPUS, GPUS = 16, 2
"""Of a node; its GPUs are empty files, which Slurm allots but torch does not see."""


def missing() -> str | None:
    """Return why there can be no cluster on this machine, or None."""
    if os.geteuid():
        return "needs root, for namespaces"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install --no-install-recommends slurm-wlm munge iproute2"
    return None


class Cluster:
    """A cluster of `count` nodes."""

    def __init__(self, count: int = 2) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/run"))
        self.folder.chmod(0o755)
        unique = secrets.token_hex(2)  # names of hosts are names of control groups, which all of a machine share
        self.controller = f"controller-{unique}"
        self.nodes = [f"node-{unique}-{number}" for number in range(1, count + 1)]
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate([self.controller, *self.nodes], 1)}
        self._hosts: dict[str, subprocess.Popen[str]] = {}
        self._munged: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        for name in ("etc", "log", "state", "spool", "munge"):
            (self.folder / name).mkdir()
        self._start_munge()
        self._write_configuration()
        for name in (self.controller, *self.nodes):
            self.power_on(name)
        self.until(lambda: self.idle() == self.nodes, 60, self.logs)

    def stop(self) -> None:
        """End all that was started."""
        for name in list(self._hosts):
            self.power_off(name)
        if self._munged:
            self._munged.terminate()
            self._munged.wait(10)
        shutil.rmtree(self.folder)

    def power_on(self, name: str) -> None:
        """Start a host."""
        spaces = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        daemon = ["slurmctld", "-D"] if name == self.controller else ["slurmd", "-D", "-N", name]
        pipe = subprocess.PIPE
        command = [*spaces, "bash", HERE / "host.sh", name, self.folder, *daemon]
        host = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        self._hosts[name] = host
        assert host.stdout
        assert host.stdin
        assert host.stdout.readline() == "ready\n"
        here = ["nsenter", "--net", "--target", str(self._first_process(name))]
        if name == self.controller:
            _call(*here, "ip", "link", "add", "bridge", "type", "bridge")
            device, bridge = "bridge", here
        else:
            bridge = ["nsenter", "--net", "--target", str(self._first_process(self.controller))]
            port, device = f"port-{name.rpartition('-')[2]}", "eth0"
            pair = ["type", "veth", "peer", "name", device, "netns", str(self._first_process(name))]
            _call(*bridge, "ip", "link", "add", port, *pair)
            _call(*bridge, "ip", "link", "set", port, "master", "bridge", "up")
        _call(*here, "ip", "address", "add", f"{self.addresses[name]}/24", "dev", device)
        _call(*here, "ip", "link", "set", device, "up")
        host.stdin.write("\n")
        host.stdin.close()

    def power_off(self, name: str) -> None:
        """Take a host away, with all its processes."""
        host = self._hosts.pop(name)
        host.kill()  # its child, the first process of the host, dies with it
        host.wait(10)
        group = FREEZER / f"slurm_{name}"
        for state in group.rglob("freezer.state"):  # what Slurm had frozen cannot die
            state.write_text("THAWED")
        self.until(lambda: _remove_groups(group), 10)

    def run(self, *command: object, host: str = "", folder: Path = ROOT, **variables: str) -> str:
        """Run a command on a host, by default that of the controller, and return what it prints.

        Raises:
            subprocess.CalledProcessError: it failed.

        """
        target = str(self._first_process(host or self.controller))
        enter = ["nsenter", "--net", "--uts", "--mount", "--pid", f"--wdns={folder}", "--target", target]
        environment = {**os.environ, **variables}
        done = subprocess.run([*enter, *map(str, command)], capture_output=True, text=True, env=environment, timeout=60)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
        return done.stdout

    def configure(self, name: str, value: object) -> None:
        """Change a value of slurm.conf in the running cluster."""
        path = self.folder / "etc" / "slurm.conf"
        path.write_text(re.sub(rf"^{name}=.*", f"{name}={value}", path.read_text(), flags=re.MULTILINE))
        self.run("scontrol", "reconfigure")

    def idle(self) -> list[str]:
        """Return the names of idle nodes."""
        try:
            return sorted(self.run("sinfo", "-hN", "-p", "main", "-t", "idle", "-o", "%N").split())
        except subprocess.CalledProcessError:  # not up yet
            return []

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm says about a job."""
        text = self.run("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait(self, number: str, state: str, timeout: float, explain: Callable[[], str] | None = None) -> dict[str, str]:
        """Wait until a job is in a state and return what Slurm says about it; fail if it ends in another one."""
        final = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "PREEMPTED"}

        def reached() -> bool:
            now = self.job(number)["JobState"]
            assert now == state or now not in final, f"{self.job(number)}\n{explain() if explain else ''}"
            return now == state

        self.until(reached, timeout, explain)
        return self.job(number)

    def until(self, reached: Callable[[], bool], timeout: float, explain: Callable[[], str] | None = None) -> None:
        """Wait until something is the case."""
        end = time.monotonic() + timeout
        while not reached():
            assert time.monotonic() < end, explain() if explain else f"not within {timeout} s"
            time.sleep(0.2)

    def processes(self) -> list[str]:
        """Return the command lines on all nodes."""
        return [line for node in self.nodes for line in self.run("ps", "-eo", "args=", host=node).splitlines()]

    def logs(self) -> str:
        """Return the last lines of all daemons."""
        files = sorted((self.folder / "log").iterdir())
        return "\n".join(f"{file.name}:\n" + "\n".join(file.read_text().splitlines()[-20:]) for file in files)

    def _first_process(self, name: str) -> int:
        parent = self._hosts[name].pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "key").write_bytes(secrets.token_bytes(1024))
        (folder / "key").chmod(0o400)
        for path in (folder, folder / "key"):
            shutil.chown(path, "munge", "munge")
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        user = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._munged = subprocess.Popen([*user, "munged", "--foreground", *options], **quiet)
        self.until((folder / "socket").exists, 10)

    def _write_configuration(self) -> None:
        etc = self.folder / "etc"
        (etc / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in self.addresses.items())
        )
        names = re.sub(r"^hosts:.*", "hosts: files", Path("/etc/nsswitch.conf").read_text(), flags=re.MULTILINE)
        (etc / "nsswitch.conf").write_text(names)
        devices = [self.folder / f"gpu{number}" for number in range(GPUS)]
        for device in devices:
            device.touch()
        (etc / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        lines = "\n".join(
            f"NodeName={name} NodeAddr={self.addresses[name]} CPUs={CPUS} RealMemory=8000 Gres=gpu:{GPUS}"
            for name in self.nodes
        )
        values = {
            "controller": f"{self.controller}({self.addresses[self.controller]})",
            "folder": self.folder,
            # as on real clusters, where this machine lets it
            "proctrack": "cgroup" if os.access(FREEZER / "cgroup.procs", os.W_OK) else "linuxproc",
            "nodes": lines,
        }
        template = (HERE / "slurm.conf").read_text()
        for name, value in values.items():
            template = template.replace(f"{{{name}}}", str(value))
        (etc / "slurm.conf").write_text(template)


def environment() -> dict[str, str]:
    """Return the variables with which a user submits: this interpreter's environment, no GPU."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _call(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=10)


def _remove_groups(group: Path) -> bool:
    for folder in sorted([group, *group.rglob("*/")], reverse=True):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # its processes are still dying
            return False
    return True
