"""Each side in a process of its own.

llama.cpp keeps a pool of threads for every thread that ever decoded, and libgomp stops spinning at
its barriers once a process has more such threads than cores. On two cores a second model in the
process, though idle, brought the raw loop from 127 to 100 tokens per second.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any, Self

_spawning = multiprocessing.get_context("spawn")

Make = Callable[..., AbstractContextManager[Callable[..., Any]]]
"""A function of a module that opens one side; what it yields is called once per turn."""


class Worker:
    """A process that holds one side; calling it runs a turn there and waits for its result.

    Args:
        make: Opens the side in the new process.
        arguments: Its arguments, to be pickled.

    Raises:
        Exception: whatever `make` or a turn raises there.
        RuntimeError: the process died.
    """

    def __init__(self, make: Make, *arguments: Any) -> None:
        self._pipe, theirs = _spawning.Pipe()
        self._process = _spawning.Process(target=_serve, args=(theirs, make, arguments))
        self._process.start()
        theirs.close()
        try:
            self._result()
        except BaseException:
            self.close()
            raise

    def __call__(self, *arguments: Any) -> Any:
        self._pipe.send(arguments)
        return self._result()

    def close(self) -> None:
        """Let the process end and wait for that."""
        self._pipe.close()
        self._process.join(30)
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _result(self) -> Any:
        try:
            result, error = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"the process of a side ended with exit code {self._process.exitcode}"
            ) from None
        if error is not None:
            raise error
        return result


def _serve(pipe: Connection, make: Make, arguments: tuple[Any, ...]) -> None:
    try:
        with make(*arguments) as turn:
            pipe.send((None, None))
            while True:
                try:
                    wanted = pipe.recv()
                except EOFError:
                    return
                pipe.send((turn(*wanted), None))
    except Exception as error:  # noqa: BLE001 - the other process raises it
        pipe.send((None, error))
