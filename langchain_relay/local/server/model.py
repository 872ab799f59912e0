"""`CompletionServerModel`: the local model on a server. Constructing it sends nothing."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, get_args

import httpx

from langchain_relay.errors import LocalModelError, Offline, UsageMistake
from langchain_relay.local.running import RunningModel
from langchain_relay.local.sampling import choose
from langchain_relay.local.server.dialect import ServerSettings
from langchain_relay.local.server.gguf_vocab import GgufVocabulary
from langchain_relay.local.server.openai_completions import FLAVOURS
from langchain_relay.local.server.service import Opening, Places, Service
from langchain_relay.local.server.transport import Http
from langchain_relay.offline import refuse_offline

if TYPE_CHECKING:
    from pathlib import Path
    from typing import ClassVar

    from langchain_relay.engine.values import LocalSession, Sampling, Turn

Protocol = Literal["auto", "llama.cpp", "openai"]

REMEMBERED_COUNTS = 65_536
"""Texts whose token counts are remembered: hosted text is counted word by word."""


class CompletionServerModel(RunningModel[Service]):
    """A local model on an inference server, for up to `max_concurrency` answers at once.

    It plays the role of `LlamaCppModel` over HTTP. The server continues a prefix; at a hand-over
    the stream is closed, and a new one continues the prefix plus the hosted span, of which the
    server finds all but the span in its prefix cache. An answer with c hand-overs takes 1 + c
    completions, and a few small requests that tokenize (see docs/local-models.md).

    Two protocols are spoken. llama.cpp's own server (`/completion`) takes and gives token ids, so
    that nothing is tokenized twice; bans, stop strings, the `margin` signal and grammars are exact.
    The OpenAI completions protocol (`/v1/completions`) keeps text: `llama_cpp.server` is tested;
    vLLM and SGLang are written from their documentation and unverified. Such a server takes control
    text such as `<|im_end|>` at its word, so in messages and hosted spans it is broken by a zero
    width space, in what the local model reads only.

    Sampling settings are always sent, so that a server's own defaults never apply. Unlike in
    process, servers apply `repeat_penalty` to the end of the prompt too, and a seed repeats a text
    only if the same asks are made in the same order.

    `count` asks the server for every text it has not seen, and waits: in an event loop that blocks
    for a round trip. Give `tokenizer` where that is too long.

    Args:
        base_url: Where the server is, for example `"http://127.0.0.1:8080"`; a trailing `/v1` is
            dropped.
        protocol: `"auto"` asks the server.
        server: Which server of the OpenAI protocol it is: `"llama_cpp.server"`, `"vllm"` or
            `"sglang"`; `None` asks the server.
        model: The model's name there; `None`: the first one.
        adapter: The name of a LoRA adapter the server has: with llama.cpp's server the file's name,
            with vLLM and SGLang the name it was loaded under.
        template: The chat template, as Jinja text; llama.cpp's server has its own.
        tokenizer: A GGUF with the model's vocabulary and template (alias, path or `hf:` name), for
            counting without asking; its weights are not loaded.
        n_ctx: Tokens of one chat; `None`: what the server says.
        max_concurrency: Answers written at once; more of them queue.
        stop_at: Strings behind which the server stops: nobody needs what follows a command.
        pin_slots: Keep each answer on one slot of llama.cpp's server, if it has enough of them.
            Turn it off where several processes share the server.
        timeout_s: How long the server may be silent.
        api_key: Sent as a bearer token.
        headers: Sent with every request.
        affinity_header: A header that names the conversation, for a load balancer that sends all of
            its requests to one replica, where its cache is.
        extra_body: More fields for every completion, where the ones sent here do not win.
        transport: What httpx sends through; `None`: the network.

    Raises:
        UsageMistake: an argument that cannot be.
        ModelNotFound: `tokenizer` names no GGUF.
    """

    _ends_with_process: ClassVar = True  # else connections would end open

    def __init__(
        self,
        base_url: str,
        *,
        protocol: Protocol = "auto",
        server: Literal["llama_cpp.server", "vllm", "sglang"] | None = None,
        model: str | None = None,
        adapter: str | None = None,
        template: str | None = None,
        tokenizer: str | Path | None = None,
        n_ctx: int | None = None,
        max_concurrency: int = 4,
        stop_at: Sequence[str] = ("</call>",),
        pin_slots: bool = True,
        timeout_s: float = 60.0,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        affinity_header: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__()
        self._base_url = _checked_url(base_url)
        _check_choices(protocol, server)
        _check_numbers(n_ctx=n_ctx, max_concurrency=max_concurrency, timeout_s=timeout_s)
        self._settings = ServerSettings(
            protocol="openai" if server is not None and protocol == "auto" else protocol,
            server=server,
            model=model,
            adapter=adapter,
            template=template,
            tokenizer=None if tokenizer is None else GgufVocabulary(tokenizer),
            n_ctx=n_ctx,
            extra_body=dict(extra_body or {}),
        )
        self._tokenizer_name = None if tokenizer is None else str(tokenizer)
        self._places = Places(max_concurrency, tuple(stop_at), pin_slots=pin_slots)
        self._timeout_s = timeout_s
        self._headers = {**(headers or {})}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        _check_headers(self._headers)
        self._affinity_header = affinity_header
        self._transport = transport
        self._salt = secrets.token_bytes(16)
        self._counts: dict[str, int] = {}

    @property
    def name(self) -> str:
        """The model's name on the server, or where the server is."""
        return self._settings.model or httpx.URL(self._base_url).netloc.decode()

    @property
    def base_url(self) -> str:
        """Where the server is."""
        return self._base_url

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that tell this model and its settings from any other, without secrets."""
        settings = self._settings
        template = settings.template
        return {
            "kind": "completion server",
            "base_url": self._base_url,
            "protocol": settings.protocol,
            "server": settings.server,
            "model": settings.model,
            "adapter": settings.adapter,
            "n_ctx": settings.n_ctx,
            "template": template and hashlib.sha256(template.encode()).hexdigest(),
            "tokenizer": self._tokenizer_name,
        }

    @property
    def requests(self) -> int:
        """HTTP requests sent so far, completions included."""
        service = self._runner
        return 0 if service is None else service.http.requests

    @property
    def completions(self) -> int:
        """Completions asked for so far; an answer with c hand-overs takes 1 + c."""
        service = self._runner
        return 0 if service is None else service.http.streams

    def open(
        self, turns: Sequence[Turn], sampling: Sampling, *, open_assistant: bool = False
    ) -> Future[LocalSession]:
        """Queue for a place on the server; the future resolves once this answer has one.

        A future cancelled while it queues leaves the queue.

        Args:
            turns: The conversation.
            sampling: How to sample; `langchain_relay.local.sampling.Chosen` has the defaults.
            open_assistant: Continue the last turn, which is the assistant's.

        Raises:
            UsageMistake: a sampling value is out of range; through the future: the chat template
                refuses the conversation, or the server lacks something.
            ContextOverflowError: (through the future) the prompt does not fit into `n_ctx`.
            LocalModelError: (through the future) the server failed, or the model was closed.
        """
        chosen = choose(sampling)
        service = self._running()
        future: Future[LocalSession] = Future()
        headers = self._affinity(turns)
        opening = Opening(self, tuple(turns), chosen, open_assistant, headers, future)
        if not service.loop.call(service.begin, opening):
            future.set_exception(
                LocalModelError(f"the local model {self.name!r} was closed: make another one")
            )
        return future

    def count(self, text: str) -> int:
        """Tokens of `text` as the server counts them; asks it, unless it was asked before."""
        if self._settings.tokenizer is not None:
            counted: int = self._settings.tokenizer.count(text)
            return counted
        known = self._counts.get(text)
        if known is None:
            service = self._running()
            known = service.loop.result(lambda: service.count(text))
            if len(self._counts) >= REMEMBERED_COUNTS:
                self._counts.clear()
            self._counts[text] = known
        return known

    def __repr__(self) -> str:
        return f"CompletionServerModel({self._base_url!r})"

    def _affinity(self, turns: Sequence[Turn]) -> dict[str, str]:
        """The header that names the conversation: what it begins with, salted and hashed."""
        if self._affinity_header is None:
            return {}
        own = [turn for turn in turns if not turn.fixed]  # a lesson is part of every conversation
        roles = [turn.role for turn in own]
        end = roles.index("assistant") if "assistant" in roles else len(roles)
        begun = "\0".join(f"{turn.role}\0{turn.content}" for turn in own[: max(end, 1)])
        name = hashlib.blake2b(begun.encode(errors="replace"), key=self._salt, digest_size=12)
        return {self._affinity_header: name.hexdigest()}

    def _running(self) -> Service:
        """The connection, as of any local model.

        Raises:
            LocalModelError: the model was closed, or the server is elsewhere while
                `LANGCHAIN_RELAY_OFFLINE` is set.
        """
        try:
            refuse_offline(f"what {self.name!r} is asked", self._base_url)
        except Offline as error:
            raise LocalModelError(str(error)) from error
        return super()._running()

    def _start(self) -> tuple[Service, Callable[[], None]]:
        http = Http(
            self._base_url,
            headers=self._headers,
            timeout_s=self._timeout_s,
            transport=self._transport,
        )
        service = Service(http, self._settings, self._places)
        return service, service.stop

    def _stop(self, runner: Service) -> None:
        runner.stop()


def _checked_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise UsageMistake(f"base_url={base_url!r} is no URL: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise UsageMistake(f"base_url={base_url!r}: give one such as 'http://127.0.0.1:8080'")
    if url.userinfo or url.query:
        raise UsageMistake("base_url must carry no secrets; give api_key= or headers=")
    return str(url).rstrip("/").removesuffix("/v1")


def _check_headers(headers: Mapping[str, str]) -> None:
    """What httpx cannot send it quotes, which may be a secret."""
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            given = "api_key" if name == "Authorization" else f"headers[{name!r}]"
            raise UsageMistake(
                f"{given} has a character no header may have, such as a newline at its end; "
                f"strip() what was read from a file"
            )


def _check_choices(protocol: str, server: str | None) -> None:
    if protocol not in get_args(Protocol):
        raise UsageMistake(f"protocol={protocol!r}; there are {list(get_args(Protocol))}")
    if server is not None and server not in FLAVOURS:
        raise UsageMistake(f"server={server!r}; there are {list(FLAVOURS)}, or None")
    if server is not None and protocol == "llama.cpp":
        raise UsageMistake("server= is for the OpenAI protocol; leave it out for llama.cpp's own")


def _check_numbers(**given: float | None) -> None:
    for name, value in given.items():
        if value is not None and not (value > 0 if name == "timeout_s" else value >= 1):
            raise UsageMistake(f"{name}={value!r} is out of range; it must be at least 1")
