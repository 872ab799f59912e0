"""What a local model runs on: made when it is first needed, given back once."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from langchain_relay.errors import LocalModelError
from langchain_relay.local.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self


class Runner(Protocol):
    """An engine, or the connection to a server; never holds the model, which could not be freed."""

    @property
    def alive(self) -> bool:
        """It takes asks; one that failed, or belongs to the process that forked, does not."""
        ...


R = TypeVar("R", bound=Runner)


class RunningModel(ABC, Generic[R]):
    """A local model, as far as it opens and closes."""

    _ends_with_process: ClassVar[bool]
    """At the end of the process a model gives back what it runs on, if nobody did before."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._runner: R | None = None
        self._finalizer: weakref.finalize[[], RunningModel[R]] | None = None
        self._closed = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What the model is called."""

    @abstractmethod
    def _start(self) -> tuple[R, Callable[[], object]]:
        """A runner, and what gives it back without waiting when the model is collected."""

    @abstractmethod
    def _stop(self, runner: R) -> None:
        """Give `runner` back, and wait for that; once more does nothing."""

    def close(self) -> None:
        """Give everything back. What is pending fails; later uses raise `LocalModelError`."""
        with self._lock:
            self._closed, runner = True, self._runner
        if runner is not None:
            self._stop(runner)

    def _running(self) -> R:
        """The runner; a new one if there is none, or if the last one failed or was forked away.

        Raises:
            LocalModelError: the model was closed.
        """
        with self._lock:
            if self._closed:
                raise LocalModelError(f"the local model {self.name!r} was closed: make another one")
            if self._runner is None or not self._runner.alive:
                if self._finalizer is not None:
                    self._finalizer.detach()
                self._runner, give_back = self._start()
                self._finalizer = weakref.finalize(self, give_back)
                self._finalizer.atexit = self._ends_with_process
            return self._runner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
