"""A real Ray head with a dashboard, for tests that submit jobs: `from tests.jobs.ray_head import ray_head`.

One head serves a module (it takes about ten seconds to start). It runs in its own process group with its own access
token, ports and session folder, so it disturbs no other Ray of the machine, and is stopped by its own process ids.

Any client process works with its environment, e.g.

    ray = Path(sys.executable).with_name("ray")
    words = [ray, "job", "submit", "--working-dir", ".", "--", "python", "-m", "jobs.sweep", "--config", "sweep.yaml"]
    subprocess.run(words, env=ray_head.environment, cwd=ROOT)
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
_MARK = "SHIFTLAB_TEST_HEAD"
_START_S = 120


@dataclass(frozen=True)
class Head:
    """A running head.

    Args:
        address: HOST:PORT, for --address of every command but submit.
        client: HOST:PORT of the Ray client server, for ray://HOST:PORT.
        dashboard: http://HOST:PORT, for `shiftlab submit` and `ray job submit`.
        environment: what a client process needs; RAY_API_SERVER_ADDRESS, the access token and `python` on the PATH
            are in it.
    """

    address: str
    client: str
    dashboard: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def ray_head() -> Iterator[Head]:
    # Unix socket paths may have about 100 characters, so pytest's own tmp_path is too long.
    folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))
    mark = secrets.token_hex(8)
    port, dashboard, agent, client = _free_ports(4)
    environment = clean_environment() | {
        _MARK: mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options = {
        "port": port,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "node-ip-address": "127.0.0.1",
        "temp-dir": folder,
        "num-cpus": 2,
        "object-store-memory": 200_000_000,
        "include-dashboard": "true",
    }
    log = folder / "head.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats"]
            + [f"--{name}={value}" for name, value in options.items()],
            env=environment,
            cwd=folder,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait_for(url, environment["RAY_AUTH_TOKEN"], process, log)
        yield Head(f"127.0.0.1:{port}", f"127.0.0.1:{client}", url, environment | {"RAY_API_SERVER_ADDRESS": url})
    finally:
        left = _stop(process, mark)
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"the head left processes behind: {left}"


def clean_environment() -> dict[str, str]:
    """This process's environment without what another Ray put there, and with this Python first on the PATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # A job's `python` is whatever the head finds on its PATH.
    return environment | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, outside 10002-19999, which Ray keeps for its workers."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            if not 10_002 <= port <= 19_999:
                ports.append(port)
        return ports


def _wait_for(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + _START_S
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, OSError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the head did not start ({error}): {log.read_text()[-2000:]}") from error
            time.sleep(0.3)


def _stop(process: subprocess.Popen[bytes], mark: str) -> list[str]:
    """Stop the head; returns what of it is alive 20 seconds later."""
    process.terminate()  # only the leader: it stops the others in order, whereas a signal to all of them hangs
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while True:
        alive = [p for p in psutil.process_iter() if _is_marked(p, mark)]
        if not alive or time.monotonic() > deadline:
            return [str(p) for p in alive]
        for p in alive:  # jobs and workers that had left the head's process group
            with contextlib.suppress(psutil.NoSuchProcess):
                p.kill()
        time.sleep(0.2)


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
