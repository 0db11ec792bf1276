"""Servers on loopback that give files away, over HTTP with faults on demand, or as S3."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import fsspec

from support.processes import free_port

Fault = Callable[[str, int], str | None]
"""(name of the file, how often it was asked for, from 1) -> what goes wrong; None: nothing."""


class FileServer(http.server.ThreadingHTTPServer):
    """Serves a folder, and counts who asks for what."""

    daemon_threads = True

    def __init__(self, folder: Path, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.fault = fault
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went away."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        with self.server.lock:
            self.server.asked[path.name] += 1
            count = self.server.asked[path.name]
        fault = self.server.fault(path.name, count)
        if fault in ("500", "403") or not path.is_file():
            self.send_error(int(fault or 404))
            return
        body = path.read_bytes()
        if fault == "silent":
            time.sleep(20)
            return
        if fault == "late":
            time.sleep(0.2)
        if fault == "corrupt":
            body = body[:100] + bytes([body[100] ^ 1]) + body[101:]
        if fault == "short":
            body = body[:-1]
        if fault == "long":
            body += b"more" * 100_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("cut", "stuck", "slow"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "cut":
                return
            time.sleep(20 if fault == "stuck" else 1)
            body = body[len(body) // 2 :]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve(folder: Path, fault: Fault = lambda name, count: None) -> Iterator[FileServer]:
    """Serve a folder over HTTP."""
    with FileServer(folder, fault) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def s3() -> Iterator[dict[str, str]]:
    """Run an S3, which the environment then points to; the variables are also returned."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process, mock.patch.dict(os.environ, variables):
        try:
            _wait_for(url)
            yield variables
        finally:
            process.kill()


def upload(folder: Path, bucket: str) -> None:
    """Put the files of a folder into a new bucket of the S3."""
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    filesystem.mkdir(bucket)
    for path in folder.rglob("*.*"):
        filesystem.put_file(str(path), f"{bucket}/{path.relative_to(folder)}")


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"no S3 at {url}")
