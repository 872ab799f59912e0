"""A real HTTP server on the loopback that speaks the OpenAI protocol and can be told to misbehave.

    with OpenAIServer("Blue light scatters most.") as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="test")

Chat completions and completions, streaming and not. It keeps every request it received. Nothing
here knows the relay.
"""

from __future__ import annotations

import json
import re
import select
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

Fault = Literal["drop", "end", "hang", "keep_alive", "malformed", "html"]
"""What goes wrong after the pieces: the connection breaks, the stream ends without a finish reason
and `[DONE]`, nothing more comes, nothing but comments comes (which resets read timeouts), a line
is no JSON; `html` replaces the whole reply."""


@dataclass(frozen=True)
class Reply:
    """How one request is answered.

    Attributes:
        text: A text, streamed in words, or the pieces it is streamed in.
        finish: Finish reason; `None`: `stop`, or `length` where the limit cut the text.
        usage: Prompt and completion tokens; `None`: words are counted.
        report_usage: Report usage even where asked to; `False`: never.
        usage_extra: Further fields of the usage, such as `prompt_tokens_details` or `cost`.
        model: The model name reported; `None`: the one that was asked for.
        status: An HTTP error status answered instead of a reply.
        headers: Further response headers.
        error: Body of the error.
        delay_s: Seconds before each piece.
        ignore_limit: Write everything, whatever the limit.
        fault: What goes wrong after the pieces.
        fault_after: Pieces before the fault; `None`: all of them.
    """

    text: str | Sequence[str] = "ok"
    finish: str | None = None
    usage: tuple[int, int] | None = None
    report_usage: bool = True
    usage_extra: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=lambda: {"message": "told to", "code": None})
    delay_s: float = 0.0
    ignore_limit: bool = False
    fault: Fault | None = None
    fault_after: int | None = None


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Script = str | Reply | Callable[[dict[str, Any]], "str | Reply"]


class OpenAIServer:
    """Answers requests from a script; the last entry repeats.

    Args:
        script: What is answered, request after request: a text, a `Reply`, or a function of the
            request's body that returns one.

    Attributes:
        requests: Every request so far.
        hung_up: Streams that the client closed before they were through.
        usage_total: Prompt and completion tokens reported or due so far.
    """

    def __init__(self, *script: Script) -> None:
        self._script = script or ("ok",)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.requests: list[Request] = []
        self.hung_up = 0
        self._usage = [0, 0]
        self._closed = threading.Semaphore(0)
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def base_url(self) -> str:
        """What clients are given as `base_url`."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    @property
    def usage_total(self) -> tuple[int, int]:
        """Prompt and completion tokens of all replies that were written."""
        return self._usage[0], self._usage[1]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The parsed bodies of all requests."""
        return [request.body for request in self.requests]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def script(self, *script: Script) -> None:
        """Answer from this script from now on."""
        with self._lock:
            self._script = script

    def wait_for_hangup(self, timeout_s: float = 5.0) -> bool:
        """Wait until a client closes a stream that is not through; whether one did."""
        return self._closed.acquire(timeout=timeout_s)

    # --- for the handler ------------------------------------------------------------------------

    def answer(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            entry = self._script[0]
            if len(self._script) > 1:
                self._script = self._script[1:]
        out = entry(request.body) if callable(entry) else entry
        return Reply(out) if isinstance(out, str) else out

    def wrote(self, usage: dict[str, Any]) -> None:
        with self._lock:
            self._usage[0] += usage["prompt_tokens"]
            self._usage[1] += usage["completion_tokens"]

    def pause(self, seconds: float | None) -> None:
        self._stopping.wait(seconds)

    def client_left(self) -> None:
        with self._lock:
            self.hung_up += 1
        self._closed.release()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error of the server's."""


def words(text: str) -> list[str]:
    """Split so that the blank belongs to the right-hand piece and nothing is lost."""
    return re.findall(r"\s*\S+(?:\s+$)?", text) or [text] * bool(text)


@dataclass(frozen=True)
class _Written:
    """What a reply comes to under a request's limit."""

    pieces: list[str]
    finish: str
    usage: dict[str, Any]


def _written(reply: Reply, body: dict[str, Any]) -> _Written:
    pieces = words(reply.text) if isinstance(reply.text, str) else list(reply.text)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    finish = "stop"
    if limit is not None and not reply.ignore_limit and len(pieces) > limit:
        pieces, finish = pieces[:limit], "length"
    asked = json.dumps(body.get("messages") or body.get("prompt") or "")
    prompt, completion = reply.usage or (len(asked.split()), len(pieces))
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **reply.usage_extra,
    }
    return _Written(pieces, reply.finish or finish, usage)


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        ours = server

    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ours: OpenAIServer

    def setup(self) -> None:
        super().setup()
        # Without it the kernel holds small pieces back for 40 ms.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: object) -> None:
        """Tests print what they have to say."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        request = Request(self.path, dict(self.headers.items()), json.loads(raw or b"{}"))
        reply = self.ours.answer(request)
        if not self.path.endswith("/completions"):
            reply = Reply(status=404, error={"message": f"no {self.path} here"})
        if reply.status != 200:
            self._send(reply.status, reply.headers, json.dumps({"error": reply.error}))
        elif reply.fault == "html":
            page = {"Content-Type": "text/html", **reply.headers}
            self._send(200, page, "<html>Bad gateway</html>")
        elif request.body.get("stream"):
            self._stream(reply, request.body)
        else:
            self._whole(reply, request.body)

    # --- whole replies --------------------------------------------------------------------------

    def _whole(self, reply: Reply, body: dict[str, Any]) -> None:
        written = _written(reply, body)
        text = "".join(written.pieces)
        self.ours.pause(reply.delay_s * len(written.pieces))
        if reply.fault == "hang":
            self.ours.pause(None)
        if reply.fault == "drop":
            self._drop()
            return
        choice = {"index": 0, "finish_reason": written.finish, **self._content("message", text)}
        out = {**self._frame(reply, body), "choices": [choice]}
        if reply.report_usage:
            out["usage"] = written.usage
        self.ours.wrote(written.usage)
        self._send(200, reply.headers, json.dumps(out) if reply.fault is None else "{not json")

    def _send(self, status: int, headers: dict[str, str], text: str) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    # --- streams --------------------------------------------------------------------------------

    def _stream(self, reply: Reply, body: dict[str, Any]) -> None:
        written = _written(reply, body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self._events(reply, body, written)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            self.ours.client_left()

    def _events(self, reply: Reply, body: dict[str, Any], written: _Written) -> None:
        frame = self._frame(reply, body)
        for at, piece in enumerate(written.pieces):
            if reply.fault and at == reply.fault_after:
                break
            if reply.delay_s:
                self._notice_the_client_leaving(wait_s=reply.delay_s)
            self._event({**frame, "choices": [self._delta(piece, None, first=at == 0)]})
        if reply.fault in {"hang", "keep_alive"}:
            self._hang(comments=reply.fault == "keep_alive")
        if reply.fault == "malformed":
            self._chunk(b"data: {not json\n\n")
        if reply.fault == "drop":
            self._drop()
            return
        if reply.fault is None:
            self._finish(reply, body, written, frame)
        self.wfile.write(b"0\r\n\r\n")

    def _finish(
        self, reply: Reply, body: dict[str, Any], written: _Written, frame: dict[str, Any]
    ) -> None:
        self._event({**frame, "choices": [self._delta("", written.finish)]})
        if reply.report_usage and (body.get("stream_options") or {}).get("include_usage"):
            self._event({**frame, "choices": [], "usage": written.usage})
        self.ours.wrote(written.usage)
        self._chunk(b"data: [DONE]\n\n")

    def _hang(self, *, comments: bool) -> None:
        """Send nothing of use until the client leaves or the server stops."""
        while not self.ours._stopping.is_set():
            self._notice_the_client_leaving(wait_s=0.02)
            if comments:
                self._chunk(b": still here\n\n")

    def _notice_the_client_leaving(self, wait_s: float) -> None:
        """A client says nothing while it is answered, so whatever comes is its end."""
        readable, _, _ = select.select([self.connection], [], [], wait_s)
        if readable and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError("the client left")

    def _drop(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _event(self, data: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(data)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    # --- the two APIs ---------------------------------------------------------------------------

    def _is_chat(self) -> bool:
        return self.path.endswith("/chat/completions")

    def _frame(self, reply: Reply, body: dict[str, Any]) -> dict[str, Any]:
        kind = "chat.completion" if self._is_chat() else "text_completion"
        if self._is_chat() and body.get("stream"):
            kind += ".chunk"
        model = reply.model or body.get("model", "test")
        return {"id": "reply-1", "object": kind, "created": 1, "model": model}

    def _delta(self, text: str, finish: str | None, *, first: bool = False) -> dict[str, Any]:
        content = self._content("delta", text, role=first)
        return {"index": 0, "finish_reason": finish, "logprobs": None, **content}

    def _content(self, key: str, text: str, *, role: bool = True) -> dict[str, Any]:
        if not self._is_chat():
            return {"text": text}
        return {key: {"content": text, **({"role": "assistant"} if role else {})}}
