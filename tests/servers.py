"""A Prefect server with its workers, on loopback and in temporary folders."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.conftest import REPOSITORY

BIN = Path(sys.executable).parent
Process = subprocess.Popen[bytes]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A Prefect server with its processes, started as the README says, and stopped together."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            **settings,
        }
        self.log = home / "processes.log"
        self.processes: list[Process] = []
        self._server: Process | None = None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command that ends."""
        return subprocess.run(
            command,
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def start(self, *command: str) -> Process:
        """A process that stays, with all that it starts in a group of its own."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def begin(self) -> None:
        """Start the server, again too."""
        self._server = self.start(
            "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)
        )
        self.wait_until_healthy()

    def go_away(self) -> None:
        """End the server as a power cut does; its database stays."""
        assert self._server is not None
        kill(self._server)

    def deploy(self, *, workers: int = 1) -> list[Process]:
        """Deployments of all flows, and workers for them."""
        for command in (
            ("prefect", "work-pool", "create", "wsiseg", "--type", "process"),
            ("prefect", "--no-prompt", "deploy", "--all"),
        ):
            ran = self.run(*command)
            assert ran.returncode == 0, ran.stderr + ran.stdout
        return [self.add_worker(f"worker-{number}") for number in range(workers)]

    def add_worker(self, name: str) -> Process:
        """A worker that has one flow run at a time."""
        return self.start("prefect", "worker", "start", "--pool", "wsiseg", "--limit", "1", "--name", name)

    def wait_until_healthy(self) -> None:
        """Wait for the answer of the server."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.api}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(self.said())

    def said(self) -> str:
        """The last words of the processes."""
        return self.log.read_text()[-5000:]

    def family(self) -> list[psutil.Process]:
        """All processes that were started here, and theirs."""
        return [one for process in self.processes for one in family(process)]

    def stop(self) -> None:
        """End all that was started here; what does not end by itself is killed."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            kill(process)


def family(process: Process) -> list[psutil.Process]:
    """A process and all that it has started, whatever sessions they made for themselves."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid)
        return [*found.children(recursive=True), found]
    return []


def kill(process: Process) -> None:
    """kill -9 of a process and of all that it has started."""
    for one in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def parameters(**given: object) -> Sequence[str]:
    """Parameters of a deployment as the command line takes them."""
    return [part for name, value in given.items() for part in ("--param", f"{name}={value}")]
