"""HTTP to one server, on an event loop of its own thread. Knows no protocol of any server."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import httpx

from langchain_relay.errors import LocalModelError

T = TypeVar("T")

CONNECT_S = 10.0
"""How long a connection may take, unless `timeout_s` is shorter."""

STOP_S = 2.0
"""How long stopping waits for connections to close."""

QUOTED_CHARS = 300
"""How much of a server's error is quoted."""

_OK = range(200, 300)
_UNAUTHORIZED = (401, 403)
_NO_SUCH_PAGE = (404, 405, 501)


class NoSuchPage(LocalModelError):
    """The server has no such endpoint; it may be of another kind."""


class Http:
    """Requests to one server. Everything but the constructor and `stop` runs on `loop`'s thread.

    Args:
        base_url: Where the server is, without a path of its API.
        headers: Sent with every request.
        timeout_s: How long the server may be silent.
        transport: What httpx sends through; `None`: the network.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: dict[str, str],
        timeout_s: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url
        self.requests = 0
        self.streams = 0
        self.timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)),
            # A stream is open for every answer; how many there are is not for the pool to decide.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
            transport=transport,
        )

    async def json(
        self, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> Any:
        """The answer to one request: a POST if there is a body.

        Raises:
            NoSuchPage: the server does not know `path`.
            LocalModelError: it cannot be reached, is silent, or answers with an error.
        """
        self.requests += 1
        method = "GET" if body is None else "POST"
        request = self._client.build_request(method, path, json=body, headers=headers)
        with self._explained(path):
            response = await self._send(request)
        self._check(response, path)
        return self._decoded(response.text, path)

    @asynccontextmanager
    async def events(
        self, path: str, body: Any, *, headers: dict[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """The server-sent events of one request, decoded; leaving the block closes the stream.

        Raises:
            NoSuchPage, LocalModelError: as `json`.
        """
        self.requests += 1
        self.streams += 1
        request = self._client.build_request("POST", path, json=body, headers=headers)
        with self._explained(path):
            response = await self._send(request, stream=True)
        try:
            if response.status_code not in _OK:
                with self._explained(path):
                    await response.aread()
                self._check(response, path)
            async with aclosing(self._data(response, path)) as data:
                yield data
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            return await self._client.send(request, stream=stream)
        except httpx.RemoteProtocolError:
            # A server may close a connection that was idle just when it is used again.
            return await self._client.send(request, stream=stream)

    async def _data(self, response: httpx.Response, path: str) -> AsyncGenerator[Any, None]:
        with self._explained(path):
            async for line in _lines(response):
                # llama.cpp's server begins the line of an error with its own word.
                word, _, data = line.partition(":")
                if word not in {"data", "error"} or not data.strip():
                    continue
                if data.strip() == "[DONE]":
                    return
                decoded = self._decoded(data, path)
                if word == "error" or (isinstance(decoded, dict) and decoded.get("error")):
                    raise LocalModelError(
                        f"the server at {self.base_url} broke off: {_quoted(data)}"
                    )
                yield decoded

    def _decoded(self, text: str, path: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise LocalModelError(
                f"{self.base_url}{path} answered with something that is no JSON: {_quoted(text)}"
            ) from error

    def _check(self, response: httpx.Response, path: str) -> None:
        if response.status_code in _OK:
            return
        hint = "; check api_key" if response.status_code in _UNAUTHORIZED else ""
        if elsewhere := response.headers.get("location"):
            hint = f"; it points to {_quoted(elsewhere.partition('?')[0])}: give that server"
        kind = NoSuchPage if response.status_code in _NO_SUCH_PAGE else LocalModelError
        raise kind(
            f"{self.base_url}{path} answered {response.status_code}: {_quoted(response.text)}{hint}"
        )

    def _explained(self, path: str) -> _Explained:
        return _Explained(f"{self.base_url}{path}", self.timeout_s)


class _Explained:
    """Turns httpx's errors into ours."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case httpx.ConnectError() | httpx.ConnectTimeout():
                raise LocalModelError(
                    f"nobody answers at {self._url} ({error!r}): start the server there, or give "
                    f"the base_url of one that runs"
                ) from error
            case httpx.TimeoutException():
                raise LocalModelError(
                    f"{self._url} was silent for {self._timeout_s:g} s: raise timeout_s, or look "
                    f"whether the server is overloaded"
                ) from error
            case httpx.HTTPError() | httpx.InvalidURL():
                raise LocalModelError(f"{self._url} failed: {error!r}") from error


async def _lines(response: httpx.Response) -> AsyncGenerator[str, None]:
    """Lines as events have them: httpx's end at U+2028 and others too, which text may hold."""
    begun = b""
    async for data in response.aiter_bytes():
        *lines, begun = (begun + data).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if begun:
        yield begun.decode(errors="replace")


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= QUOTED_CHARS else text[:QUOTED_CHARS] + "…"


class Loop:
    """An event loop on a daemon thread, for code that must never block its caller."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        # A garbage collection inside `call` may call it again, to give something back.
        self._lock = threading.RLock()
        self._ends = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(
            target=_run, args=(self._loop,), name="langchain-relay-http", daemon=True
        )
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Calls are still taken."""
        return self._pid == os.getpid() and not self._loop.is_closed()

    def call(self, function: Callable[..., object], *args: object) -> bool:
        """Call `function` on the thread, soon; `False` if the loop ends or has ended."""
        if not self.alive:
            return False
        with self._lock:  # what is taken is called before the loop begins to end
            if not self._ends:
                self._loop.call_soon_threadsafe(function, *args)
            return not self._ends

    def start(self, coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run a coroutine beside the others; called on the loop's thread."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task

    def result(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine and wait for it.

        Raises:
            LocalModelError: the loop has ended, or would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise LocalModelError("a callback of this model cannot wait for its server")
        future: Future[T] = Future()

        def begin() -> None:
            self.start(_into(future, function()))

        if not self.call(begin):
            raise LocalModelError("the local model was closed")
        return future.result()

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what runs, run `last`, and end the thread; may be called again."""
        if not self.alive:
            return
        with self._lock:
            self.call(self._begin_end, last)
            self._ends = True
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_S)

    def _begin_end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._ending = self._loop.create_task(self._end(last))

    async def _end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while tasks := list(self._tasks):  # one that ends may start another
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await last()
        finally:
            self._loop.call_soon(self._loop.stop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    # Not a method: the thread must not keep whoever it works for.
    try:
        loop.run_forever()
        # httpx leaves its inner generators to the loop, which closes each in a task of its own.
        loop.run_until_complete(loop.shutdown_asyncgens())
        closing = loop.time() + STOP_S
        while (tasks := asyncio.all_tasks(loop)) and loop.time() < closing:
            loop.run_until_complete(asyncio.wait(tasks, timeout=STOP_S))
    finally:
        loop.close()


async def _into(future: Future[T], coroutine: Coroutine[Any, Any, T]) -> None:
    try:
        result = await coroutine
    except asyncio.CancelledError:
        future.set_exception(LocalModelError("the local model was closed"))
        raise
    except BaseException as error:  # noqa: BLE001 - handed to whoever waits
        future.set_exception(error)
    else:
        future.set_result(result)
