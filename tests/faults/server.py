"""The server: threads, sockets, time and the faults of the wire. What is said is the dialects'.

One thread per connection, HTTP/1.1 with keep-alive; streams are chunked and sent without Nagle's
delay. Every request is kept with what became of it.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.faults.caches import PromptCaches
from tests.faults.dialects import DIALECTS, RELATIVES, Asked, Dialect, Said
from tests.faults.dialects.dialect import Kind
from tests.faults.script import RATE_LIMITED, STATUS, UNBOUNDED, Fault, Reply, token_count

BACKLOG = 128
KEEP_ALIVE_EVERY_S = 0.02
THREAD_NAME = "fault-server"

_KINDS: Mapping[Fault | None, Kind] = {
    Fault.TOOL_CALLS: "tool_calls",
    Fault.REFUSAL: "refusal",
    Fault.CONTENT_FILTER: "filtered",
    Fault.EMPTY_CHOICE: "empty",
}

_UNSEEN_TOKENS: Mapping[Kind, int] = {"tool_calls": 5, "refusal": 6}
"""Output tokens that are billed and no text."""

_MID_STREAM = frozenset(
    {
        Fault.STALLED,
        Fault.KEEP_ALIVE,
        Fault.RESET_AFTER_TOKEN,
        Fault.TRUNCATED,
        Fault.TRUNCATED_BODY,
        Fault.MALFORMED_JSON,
        Fault.ERROR_EVENT,
        Fault.INVALID_UTF8,
    }
)
"""Faults that come behind `Reply.fault_after` tokens."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on with 0 seconds: closing sends a TCP reset instead of an end."""

_NOT_UTF8 = b"\xff\xfe\xc3("


@dataclass
class Served:
    """One request, and what became of it.

    Attributes:
        dialect: Name of the dialect.
        path: Path without the query.
        headers: As they arrived; names in lower case.
        body: The parsed body.
        model: The model that was asked for.
        fault: What went wrong.
        arrived_s: When, by `time.monotonic`.
        client: The client's address; requests that share it share a connection.
        input_tokens: What a provider would count; 0 for HTTP errors.
        tokens_sent: Output tokens written to the socket.
        limit: Bound of the output tokens that was asked for.
        usage: Input and output tokens, where the usage was written to the socket.
        cached: Input tokens read from a cache and written to it, where the server plays one.
        status: The HTTP status answered; `None`: the connection broke before.
        hung_up: The client left before the reply was through.
        through: The reply was written as it was scripted.
    """

    dialect: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    model: str
    fault: Fault | None
    arrived_s: float
    client: tuple[str, int]
    input_tokens: int
    limit: int | None
    tokens_sent: int = 0
    usage: tuple[int, int] | None = None
    cached: tuple[int, int] | None = None
    status: int | None = None
    hung_up: bool = False
    through: bool = False
    _over: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def due(self) -> tuple[int, int]:
        """Input and output tokens a provider would bill.

        As reported, else what was written: up to the limit, since no provider bills what nobody
        asked for without saying so.
        """
        if self.usage is not None:
            return self.usage
        sent = self.tokens_sent if self.limit is None else min(self.tokens_sent, self.limit)
        return self.input_tokens, sent

    def wait(self, timeout_s: float = 5.0) -> bool:
        """Wait until the server is done with this request; whether it is."""
        return self._over.wait(timeout_s)


Script = str | Reply | Callable[[Served], "str | Reply"]


class FaultServer:
    """Answers requests from a script; the last entry repeats.

    Args:
        script: What is answered, request after request: a text, a `Reply`, or a function of the
            request that returns one.
        caches: The prompt caches it plays; `None`: it has none.

    Attributes:
        served: Every request so far, in the order of arrival.
    """

    def __init__(self, *script: Script, caches: PromptCaches | None = None) -> None:
        self._script = script or ("ok",)
        self._caches = caches
        self._lock = threading.Lock()
        self._connections = 0
        self.stopping = threading.Event()
        self.served: list[Served] = []
        self._http = _Http(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(
            target=self._http.serve_forever,
            kwargs={"poll_interval": 0.01},
            daemon=True,
            name=THREAD_NAME,
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        class Handler(_Handler):
            ours = self

        return Handler

    @property
    def url(self) -> str:
        """Address without a path."""
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def usage_total(self) -> tuple[int, int]:
        """Input and output tokens due for all requests so far."""
        with self._lock:
            due = [served.due for served in self.served]
        return sum(read for read, _ in due), sum(wrote for _, wrote in due)

    @property
    def open_connections(self) -> int:
        """Connections that neither side has closed, idle ones included."""
        with self._lock:
            return self._connections

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def script(self, *script: Script) -> None:
        """Answer from this script from now on."""
        with self._lock:
            self._script = script

    def settled(self, timeout_s: float = 5.0) -> bool:
        """Wait until no request is being answered; whether none is."""
        end = time.monotonic() + timeout_s
        with self._lock:
            served = list(self.served)
        return all(one.wait(max(0.0, end - time.monotonic())) for one in served)

    # --- for the handler ------------------------------------------------------------------------

    def reply_to(self, served: Served) -> Reply:
        with self._lock:
            self.served.append(served)
            entry = self._script[0]
            if len(self._script) > 1:
                self._script = self._script[1:]
        out = entry(served) if callable(entry) else entry
        return Reply(out) if isinstance(out, str) else out

    def count(self, served: Served) -> None:
        """Note what of the prompt comes from a cache, where the server plays one."""
        if self._caches is None:
            return
        with self._lock:
            counted = self._caches.count(served.dialect, served.body)
        served.input_tokens = counted.input
        served.cached = (counted.cached, counted.written)

    @contextmanager
    def connection(self) -> Iterator[None]:
        with self._lock:
            self._connections += 1
        try:
            yield
        finally:
            with self._lock:
                self._connections -= 1


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = BACKLOG

    def process_request(self, request: Any, client_address: Any) -> None:
        threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            daemon=True,
            name=THREAD_NAME,
        ).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error of the server's."""


class _ClientLeft(ConnectionError):
    pass


class _Over(Exception):
    """The connection has been broken as scripted."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ours: FaultServer
    dialect: Dialect
    asked: Asked
    served: Served
    reply: Reply

    def setup(self) -> None:
        super().setup()
        # Without it the kernel holds small pieces back for 40 ms.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def handle(self) -> None:
        with self.ours.connection():
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Tests print what they have to say."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        address = urlsplit(self.path)
        for dialect in (*RELATIVES, *DIALECTS):
            if asked := dialect.asked(address.path, address.query, body):
                self.dialect, self.asked = dialect, asked
                self._serve(address.path, body)
                return
        self.send_error(404)

    def _serve(self, path: str, body: dict[str, Any]) -> None:
        asked = self.asked
        served = self.served = Served(
            dialect=self.dialect.name,
            path=path,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
            model=asked.model,
            fault=None,
            arrived_s=time.monotonic(),
            client=self.client_address,
            input_tokens=len(asked.prompt.split()),
            limit=asked.limit,
        )
        reply = self.reply = self.ours.reply_to(served)
        served.fault = reply.fault
        try:
            if reply.fault in self.dialect.lacks:
                self._send(501, f"{self.dialect.name} has no {reply.fault}".encode())
                return
            self._answer()
            served.through = True
        except _Over:
            served.through = True
        except ConnectionError:
            served.hung_up = True
            self.close_connection = True
        finally:
            served._over.set()

    def _answer(self) -> None:
        fault = self.reply.fault
        if fault is not None and fault in STATUS:
            self.served.input_tokens = 0  # nobody bills an error
            self._send(STATUS[fault], json.dumps(self.dialect.error(STATUS[fault])).encode())
            return
        if fault is Fault.SLOW_HEADERS:
            self._pause(self.reply.delay_s)
        if fault is Fault.RESET_BEFORE_HEADERS:
            self._reset()
        if fault is Fault.WRONG_CONTENT_TYPE:
            self._send(200, b"<html><body>Sign in</body></html>", "text/html")
            return
        self.ours.count(self.served)
        said = _said(self.reply, self.asked)
        if self.served.cached is not None:
            usage = (self.served.input_tokens, said.usage[1])
            said = replace(said, usage=usage, cached=self.served.cached)
        if self.asked.streamed:
            self._stream(said)
        else:
            self._whole(said)

    # --- whole replies --------------------------------------------------------------------------

    def _whole(self, said: Said) -> None:
        data = json.dumps(self.dialect.whole(said)).encode()
        fault, half = self.reply.fault, len(data) // 2
        if fault is Fault.SLOW_TOKENS:
            self._pause(self.reply.delay_s * len(said.pieces))
        if fault is Fault.MALFORMED_JSON:
            data = data[:half]
        if fault is Fault.ERROR_EVENT:  # without a stream it is an HTTP error
            self.served.input_tokens = 0
            self._send(500, json.dumps(self.dialect.error(500)).encode())
            return
        if fault is Fault.INVALID_UTF8:
            data = data.replace(said.text.encode(), _NOT_UTF8)
        self._head(200, "application/json", {"Content-Length": str(len(data))})
        if fault is Fault.RESET_BEFORE_TOKEN:
            self._reset()
        self.served.tokens_sent = sum(map(token_count, said.pieces))
        if fault in _MID_STREAM - {Fault.MALFORMED_JSON, Fault.INVALID_UTF8}:
            self._write(data[:half])
            self._break()
        self._reported(said)
        self._write(data)

    def _send(self, status: int, data: bytes, content_type: str = "application/json") -> None:
        self._head(status, content_type, {"Content-Length": str(len(data)), **self._retry_after()})
        self._write(data)

    def _retry_after(self) -> dict[str, str]:
        reply = self.reply
        if reply.fault not in RATE_LIMITED:
            return {}
        if reply.fault is Fault.RATE_LIMITED_DATE:
            return {"Retry-After": formatdate(time.time() + reply.retry_after_s, usegmt=True)}
        return {"Retry-After": f"{reply.retry_after_s:g}"}

    def _head(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.served.status = status

    # --- streams --------------------------------------------------------------------------------

    def _stream(self, said: Said) -> None:
        self._head(200, self.dialect.stream_type, {"Transfer-Encoding": "chunked"})
        if self.reply.fault is Fault.RESET_BEFORE_TOKEN:
            self._reset()
        for event in self.dialect.opening(said):
            self._chunk(event)
        for at, piece in enumerate(said.pieces):
            if self.reply.fault in _MID_STREAM and at == self.reply.fault_after:
                self._break(said, at)
            if self.reply.fault is Fault.SLOW_TOKENS:
                self._pause(self.reply.delay_s)
            self._chunk(self.dialect.piece(said, at, piece))
            self.served.tokens_sent += token_count(piece)
        self._reported(said)
        for event in self.dialect.ending(said):
            self._chunk(event)
        self._chunk(b"")

    def _break(self, said: Said | None = None, at: int = 0) -> None:
        """What goes wrong in the middle; the stream goes on where that is part of the fault."""
        match self.reply.fault:
            case Fault.STALLED | Fault.KEEP_ALIVE:
                self._hold()
                self._reset()
            case Fault.RESET_AFTER_TOKEN:
                self._reset()
            case Fault.TRUNCATED if said is not None:
                self._chunk(b"")
                raise _Over
            case Fault.TRUNCATED | Fault.TRUNCATED_BODY:
                self._end()
            case Fault.MALFORMED_JSON:
                self._chunk(self.dialect.malformed)
            case Fault.ERROR_EVENT:
                self._chunk(self.dialect.error_event())
                self._chunk(b"")
                raise _Over
            case Fault.INVALID_UTF8 if said is not None:
                event = self.dialect.piece(said, at, "NOT-UTF8")
                self._chunk(event.replace(b"NOT-UTF8", _NOT_UTF8))

    def _reported(self, said: Said) -> None:
        """Note it before it is written: a client may be done with it at once."""
        if said.report_usage:
            self.served.usage = said.usage

    def _chunk(self, data: bytes) -> None:
        """One HTTP chunk; an empty one ends the body."""
        self._write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)

    # --- time and sockets -----------------------------------------------------------------------

    def _hold(self) -> None:
        """Say nothing of use until the client leaves, the server stops or the time is over."""
        hold_s = self.reply.hold_s
        end = time.monotonic() + hold_s if hold_s is not None else float("inf")
        while not self.ours.stopping.is_set() and time.monotonic() < end:
            self._pause(KEEP_ALIVE_EVERY_S)
            if self.reply.fault is Fault.KEEP_ALIVE and self.asked.streamed:
                self._chunk(self.dialect.comment)

    def _pause(self, seconds: float) -> None:
        """Wait, unless the client leaves or the server stops.

        A client says nothing while it is answered, so whatever comes from it is its end.
        """
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0 and not self.ours.stopping.is_set():
            readable, _, _ = select.select([self.connection], [], [], min(left_s, 0.05))
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise _ClientLeft
            if readable:  # a pipelined request waits its turn
                time.sleep(min(left_s, 0.05))

    def _reset(self) -> None:
        """Break the connection with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()
        raise _Over

    def _end(self) -> None:
        """End the connection in the middle of the body."""
        self._close()
        raise _Over

    def _close(self) -> None:
        self.close_connection = True
        self.rfile.close()  # it holds the socket open
        self.connection.close()


def _said(reply: Reply, asked: Asked) -> Said:
    kind = _KINDS.get(reply.fault, "text")
    pieces = reply.pieces
    if kind == "filtered":
        pieces = pieces[: reply.fault_after]
    limit = None if reply.fault in UNBOUNDED else asked.limit
    cut = limit is not None and len(pieces) > limit
    wrote = sum(map(token_count, pieces[:limit])) + _UNSEEN_TOKENS.get(kind, 0)
    wrote += reply.reasoning_tokens
    return Said(
        model=reply.model or asked.model,
        kind=kind,
        pieces=pieces[:limit],
        cut=cut,
        usage=reply.usage or (len(asked.prompt.split()), wrote),
        report_usage=reply.fault is not Fault.NO_USAGE
        and (asked.wants_usage or not asked.streamed),
        reasoning_tokens=reply.reasoning_tokens,
    )
