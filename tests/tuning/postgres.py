"""A real PostgreSQL server for a test, that can be killed and started again."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

PASSWORD = "s3cret"


class PostgreSQL:
    """A server with a data directory of its own, on a unix socket and on a free port of the loopback.

    Args:
        binaries: folder with initdb and postgres.
        folder: what it may fill.
        fsync: whether commits reach the disk; the death of its processes it survives in any case.
    """

    def __init__(self, binaries: Path, folder: Path, fsync: bool = False) -> None:
        self._binaries, self.folder, self._fsync = binaries, folder, fsync
        # PostgreSQL refuses to run as root.
        self._user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        folder.chmod(0o755)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if self._user:
            shutil.chown(folder, "postgres", "postgres")
        words = ["--username=shiftlab", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "--no-locale"]
        self._run("initdb", "--encoding=UTF8", *words, str(folder / "data"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql://shiftlab:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        self.socket_url = f"postgresql://shiftlab:{PASSWORD}@/postgres?host={folder}&port={self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = {"port": self.port, "unix_socket_directories": self.folder, "listen_addresses": "127.0.0.1"}
        if not self._fsync:
            options["fsync"] = "off"
        words = [f"--{name}={value}" for name, value in options.items()]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.folder / "data", *words],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **self._user,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                return self._connect().close()
            except Exception:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.02)

    def stop_hard(self) -> None:
        """Kill the server and all its children, as a crash of its machine would."""
        assert self._process is not None
        processes = self._processes()
        for process in processes:
            process.kill()
        self._process.wait(10)
        self._process = None
        while any(_lives(process) for process in processes):
            time.sleep(0.01)

    def pause(self) -> None:
        """Make the server hang: connections stay, answers do not come."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """Let the server go on after `pause`."""
        for process in self._processes():
            process.resume()

    def empty(self) -> str:
        """Take everything out of the database; returns its URL."""
        with self._connect() as connection:
            connection.execute("drop schema public cascade")
            connection.execute("create schema public")
        return self.url

    def close(self) -> None:
        """End the server if it runs."""
        if self._process is not None:
            self.stop_hard()

    def _connect(self):
        import psycopg

        return psycopg.connect(self.url, autocommit=True, connect_timeout=5)

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._binaries / program, *words], cwd=self.folder, capture_output=True, text=True, **self._user
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # whoever has inherited it may be slow to bury it
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def postgresql(fsync: bool = False) -> Iterator[PostgreSQL]:
    """A server for as long as the block runs; the test is skipped where PostgreSQL or its driver is not installed."""
    pytest.importorskip("psycopg")
    # Where Debian has it, newest first; it is not on the path there.
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]), reverse=True)
    found += [Path(path) for path in (shutil.which("initdb"),) if path]
    if not found:
        pytest.skip("no PostgreSQL here: apt install postgresql")
    # Not in tmp_path: its parents are closed to the user that PostgreSQL runs as.
    folder = Path(tempfile.mkdtemp(prefix="shiftlab-postgresql-", dir="/tmp"))
    try:
        with contextlib.closing(PostgreSQL(found[0].parent, folder, fsync)) as server:
            yield server
    finally:
        shutil.rmtree(folder)
