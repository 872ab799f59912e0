"""Any LangChain chat model in the hosted role.

One attempt runs the model's own `_stream` or `_astream`: not `stream`, which would open a run of
its own and end it with an error whenever a span is cut. The client's retries are off, because a
request nobody counts is money nobody reserved.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import aclosing, closing
from typing import Any
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_relay.delegates.caching import cache_key, cache_rule, with_breakpoints
from langchain_relay.delegates.chunks import ChunkReader, families
from langchain_relay.delegates.continuation import Repeated, continue_messages
from langchain_relay.delegates.failures import building, translated
from langchain_relay.delegates.hosts import HostRule, Spelling, host_rule
from langchain_relay.delegates.loops import PerLoop, with_own_connections
from langchain_relay.delegates.probe import Probing
from langchain_relay.delegates.reasoning import least_reasoning
from langchain_relay.engine.tokens import input_tokens_bound
from langchain_relay.engine.values import Attempt, Delta, Mode
from langchain_relay.errors import UsageMistake

__all__ = ["ChatModelDelegate"]

_OPENAI = "BaseChatOpenAI"

_LIMIT_FIELDS = (
    *("max_tokens", "max_output_tokens", "max_completion_tokens"),
    *("num_predict", "max_new_tokens", "n_predict"),
)
"""Names under which chat models keep the limit of a reply; the first one a class has is set."""

_REASONING_FIELDS = (
    "reasoning",
    "reasoning_effort",
    "thinking",
    "thinking_budget",
    "thinking_level",
)
"""Fields by which a user says how much a model is to reason."""

_SENDS_ONCE = frozenset({"BaseChatOpenAI", "ChatOllama"})
"""Classes that send one request for one attempt: the first with its clients copied, as the tests
count; langchain-ollama 1.1.0 has no retries at all."""

CONTINUE_FLAGS = {"continue_final_message": True, "add_generation_prompt": False}
"""vLLM and SGLang: go on with the last message instead of opening a new one."""


class ChatModelDelegate(Probing):
    """Hands spans to a LangChain chat model.

    ```python
    ChatModelDelegate(ChatOpenAI(model="gpt-5-mini"))
    ```

    The model is copied with its own retries off, and with its reasoning turned off or to its least
    where `delegates/reasoning.py` knows how and you have not set it yourself: hidden reasoning uses
    up the few tokens of a span. It keeps everything else: key, address, headers, temperature, rate
    limiter. Stop strings are not sent: providers leave them out of the text, so
    that nobody could see where the caller's cut belongs.

    Args:
        model: The chat model.
        mode: How a draft is shown to it. `None`: what `delegates/hosts.py` says of the provider
            and the model; `instruct` for who is not in there.
        flag: How `flag` mode is written: `prefix` or `partial` on the message, or the request's
            `continue_final_message` (vLLM, SGLang). `None`: what the table says, else the last
            one for `ChatOpenAI` and its relatives, and `prefix` for others.
        name: What to call the model in events, spans and prices; by default its own name.
        worst_attempts: Requests one attempt may send at most. By default 1 where this package
            knows how to turn retries off, else 1 + the model's `max_retries`, else unknown.
        prompt_cache: Whether the host's prompt cache is steered, as `delegates/caching.py` says:
            breakpoints for Claude and GPT-5.6, a cache key for OpenAI. `None`: where the table
            knows the host, unless you set cache options yourself; `False`: never; `True`: also at
            an address it does not know.

    Raises:
        UsageMistake: `mode` is `completion`, which has no chat messages.
    """

    def __init__(
        self,
        model: BaseChatModel,
        *,
        mode: Mode | None = None,
        flag: Spelling | None = None,
        name: str | None = None,
        worst_attempts: int | None = None,
        prompt_cache: bool | None = None,
    ) -> None:
        if mode == "completion":
            raise UsageMistake(
                "completion mode sends a raw prompt, which chat models do not take; use "
                'OpenAIDelegate(client, model=..., api="completions")'
            )
        self._families = families(model)
        self._named = name
        rule = host_rule(self._families, _address(model), _model_name(model))
        self._mode: Mode = mode or _default_mode(model, rule)
        self._flag: Spelling = flag or _spelling(rule, self._families)
        self._echoes = self._mode == "flag" and rule is not None and rule.echoes
        self._worst = worst_attempts or _worst_attempts(model, self._families)
        self._chat = _with_least_reasoning(_without_retries(model, self._families), self._families)
        self._cache = cache_rule(
            self._families, _address(model), _model_name(model), wanted=prompt_cache
        )
        if _cache_options(model) & {"prompt_cache_options", "prompt_cache_key"}:
            self._cache = None  # the user steers it
        self._per_loop: PerLoop[BaseChatModel] = PerLoop()
        if mode is None:
            self._take_verdict()

    @property
    def model(self) -> str:
        """See `Delegate.model`."""
        return self._named or _model_name(self._chat)

    @property
    def mode(self) -> Mode:
        """See `Delegate.mode`."""
        return self._mode

    @property
    def rate_limiter(self) -> BaseRateLimiter | None:
        """The wrapped model's own limiter; whoever sends an attempt waits for it."""
        return self._chat.rate_limiter

    @property
    def base_url(self) -> str | None:
        """Where requests go, without credentials; delegates that share it share a breaker."""
        return _base_url(self._chat)

    @property
    def worst_attempts(self) -> int | None:
        """See `Delegate.worst_attempts`."""
        return self._worst

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """See `Delegate.fingerprint`."""
        cls = type(self._chat)
        return {
            "delegate": f"{cls.__module__}.{cls.__qualname__}",
            "model": self.model,
            "mode": self._mode,
            "base_url": self.base_url,
            "settings": _settings(self._chat),
        }

    def input_bound(self, attempt: Attempt) -> int:
        """See `Delegate.input_bound`. One token per UTF-8 byte, and what a chat format adds."""
        return messages_bound(self._messages(attempt))

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        """See `Delegate.stream`.

        Raises:
            DelegateError: the host failed; its subclasses say how.
        """
        reader = self._reader(attempt)
        with translated(self.model, lambda: reader.received):
            with closing(self._generations(attempt)) as generations:
                for generation in generations:
                    yield reader.read(generation)
            if last := reader.end():
                yield last

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        """Async twin of `stream`."""
        reader = self._reader(attempt)
        with translated(self.model, lambda: reader.received):
            async with aclosing(self._agenerations(attempt)) as generations:
                async for generation in generations:
                    yield reader.read(generation)
            if last := reader.end():
                yield last

    # --- one request ----------------------------------------------------------------------------

    def _reader(self, attempt: Attempt) -> ChunkReader:
        return ChunkReader(self._chat, Repeated(attempt.draft if self._echoes else ""))

    def _messages(self, attempt: Attempt) -> list[BaseMessage]:
        messages = continue_messages(
            attempt.messages,
            attempt.draft,
            self._mode,
            attempt.max_tokens,
            clipped=attempt.clipped,
        )
        messages = with_breakpoints(
            messages,
            attempt.messages,
            attempt.draft,
            self._cache,
            again=attempt.again,
            taken=int("cache_control" in _cache_options(self._chat)),
        )
        if self._flags(attempt) and _OPENAI not in self._families:
            flagged = {**messages[-1].additional_kwargs, self._flag: True}
            messages[-1] = messages[-1].model_copy(update={"additional_kwargs": flagged})
        return messages

    def _flags(self, attempt: Attempt) -> bool:
        return self._mode == "flag" and bool(attempt.draft.strip())

    def _request(
        self, chat: BaseChatModel, attempt: Attempt
    ) -> tuple[BaseChatModel, dict[str, Any]]:
        """The model set to this attempt's limit, and the keyword arguments of its `_stream`."""
        kwargs: dict[str, Any] = {}
        if attempt.model is not None:
            kwargs["model"] = attempt.model
        if _OPENAI in self._families:
            # A keyword wins over the model's own limit, under whatever name the class sends it.
            kwargs["max_tokens"] = attempt.max_tokens
            if self._cache is not None:
                kwargs |= self._cache.options
            if self._cache is not None and self._cache.routed:
                kwargs["prompt_cache_key"] = cache_key(attempt.messages)
            if attempt.timeout_s is not None:
                kwargs["timeout"] = attempt.timeout_s
            if not self._flags(attempt):
                return chat, kwargs
            if self._flag != "continue_final_message":
                return _flagging(chat, self._flag), kwargs
            kwargs["extra_body"] = {**(_field(chat, "extra_body") or {}), **CONTINUE_FLAGS}
            return chat, kwargs
        for name in _LIMIT_FIELDS:
            if name in type(chat).model_fields:
                return chat.model_copy(update={name: attempt.max_tokens}), kwargs
        return chat, {**kwargs, "max_tokens": attempt.max_tokens}

    def _generations(self, attempt: Attempt) -> Generator[ChatGeneration, None, None]:
        with building(self.model):
            chat, kwargs = self._request(self._chat, attempt)
            messages = self._messages(attempt)
        if not _streams(chat, ("_stream",)):
            yield _only(chat._generate(messages, run_manager=attempt.run_manager, **kwargs))  # noqa: SLF001 - see the module
            return
        chunks = chat._stream(messages, **kwargs)  # noqa: SLF001 - see the module
        with closing(chunks):  # type: ignore[type-var]  # every `_stream` is a generator
            yield from chunks

    async def _agenerations(self, attempt: Attempt) -> AsyncGenerator[ChatGeneration, None]:
        """Async twin of `_generations`."""
        own = self._per_loop.get(lambda: _on_this_loop(self._chat, self._families))
        with building(self.model):
            chat, kwargs = self._request(own, attempt)
            messages = self._messages(attempt)
        if not _streams(chat, ("_astream", "_stream")):
            run = attempt.run_manager
            result = await chat._agenerate(messages, run_manager=run, **kwargs)  # noqa: SLF001 - see the module
            yield _only(result)
            return
        chunks = chat._astream(messages, **kwargs)  # noqa: SLF001 - see the module
        async with aclosing(chunks):  # type: ignore[type-var]  # every `_astream` is a generator
            async for chunk in chunks:
                yield chunk


def messages_bound(messages: list[BaseMessage]) -> int:
    """An upper bound of the input tokens of a conversation, without a tokenizer."""
    return input_tokens_bound(
        message.content
        if isinstance(message.content, str) and message.type in {"human", "system"}
        else json.dumps(message.model_dump(), ensure_ascii=False, default=str)
        for message in messages
    )


def _only(result: ChatResult) -> ChatGeneration:
    """The one reply of a model that does not stream, with what only the whole result knows."""
    generation = result.generations[0]
    known = {**(result.llm_output or {}), **(generation.generation_info or {})}
    return generation.model_copy(update={"generation_info": known})


def _streams(chat: BaseChatModel, methods: tuple[str, ...]) -> bool:
    """Whether the class has one of these methods of its own and is allowed to stream."""
    own = any(getattr(type(chat), name) is not getattr(BaseChatModel, name) for name in methods)
    return own and chat.disable_streaming is not True


# --- what is known of classes -------------------------------------------------------------------


def _field(chat: object, name: str) -> Any:
    return getattr(chat, name, None)


_CACHE_OPTIONS = (
    "cache_control",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)


def _cache_options(chat: BaseChatModel) -> set[str]:
    """The fields by which the user steers the host's cache."""
    extra = {**(_field(chat, "model_kwargs") or {}), **(_field(chat, "extra_body") or {})}
    return {name for name in _CACHE_OPTIONS if name in extra or _field(chat, name) is not None}


def _model_name(chat: BaseChatModel) -> str:
    for name in ("model_name", "model", "model_id", "deployment_name", "azure_deployment"):
        if isinstance(value := _field(chat, name), str) and value:
            return value
    return type(chat).__name__


def _address(chat: BaseChatModel) -> str:
    return (_base_url(chat) or "").partition("://")[2]


def _default_mode(model: BaseChatModel, rule: HostRule | None) -> Mode:
    if rule is None or rule.mode == "completion":
        return "instruct"
    thinking = _field(model, "thinking") or {}
    if isinstance(thinking, Mapping) and thinking.get("type") not in {None, "disabled"}:
        return "instruct"  # Claude refuses a prefilled answer while it thinks
    return rule.mode


def _spelling(rule: HostRule | None, known: frozenset[str]) -> Spelling:
    default: Spelling = "continue_final_message" if _OPENAI in known else "prefix"
    return default if rule is None else rule.flag or default


def _flagging(chat: BaseChatModel, key: str) -> BaseChatModel:
    """The model with clients that mark the last message; it drops keys it does not know."""
    clients = {name: _field(chat, name) for name in ("client", "async_client")}
    return chat.model_copy(
        update={name: _Flagging(client, key) for name, client in clients.items() if client}
    )


class _Flagging:
    """`chat.completions` of an openai client, either flavour, with a key on the last message."""

    def __init__(self, client: Any, key: str) -> None:
        self._client = client
        self._key = key

    def create(self, **payload: Any) -> Any:
        *before, last = payload["messages"]
        payload["messages"] = [*before, {**last, self._key: True}]
        return self._client.create(**payload)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def _worst_attempts(model: BaseChatModel, known: frozenset[str]) -> int | None:
    if known & _SENDS_ONCE or type(model).__module__.startswith("langchain_core."):
        return 1
    retries = _field(model, "max_retries")
    # Elsewhere the field is set to 0 too, but nobody has counted requests: expect the worst.
    return 1 + retries if isinstance(retries, int) and retries >= 0 else None


def _without_retries(model: BaseChatModel, known: frozenset[str]) -> BaseChatModel:
    """A copy whose client sends each request once, and asks for usage while it streams."""
    fields = type(model).model_fields
    update: dict[str, Any] = {}
    if "max_retries" in fields:
        update["max_retries"] = 0
    if "stream_usage" in fields and _field(model, "stream_usage") is not False:
        update["stream_usage"] = True
    if _OPENAI in known:
        update |= _openai_clients(model)
    if not update:
        return model
    copy = model.model_copy(update=update)
    for name in _cached_properties(type(copy)):
        # model_copy takes built clients along, with the retries they were built with.
        copy.__dict__.pop(name, None)
    return copy


def _with_least_reasoning(model: BaseChatModel, known: frozenset[str]) -> BaseChatModel:
    rule = least_reasoning(known, _address(model), _model_name(model))
    if rule is None or any(_field(model, name) is not None for name in _REASONING_FIELDS):
        return model
    fields = type(model).model_fields
    update = {name: value for name, value in rule.settings.items() if name in fields}
    if rule.body and "extra_body" in fields:
        update["extra_body"] = {**rule.body, **(_field(model, "extra_body") or {})}
    return model.model_copy(update=update) if update else model


def _openai_clients(model: BaseChatModel) -> dict[str, Any]:
    """`max_retries=0` on the copy alone changes nothing: the clients are built already."""
    clients: dict[str, Any] = {}
    for root_name, name in (("root_client", "client"), ("root_async_client", "async_client")):
        root = _field(model, root_name) or getattr(_field(model, name), "_client", None)
        if root is not None:
            clients[root_name] = root.with_options(max_retries=0)
            clients[name] = clients[root_name].chat.completions
    return clients


def _on_this_loop(chat: BaseChatModel, known: frozenset[str]) -> BaseChatModel:
    """The model with async connections that belong to the running loop."""
    root = _field(chat, "root_async_client") if _OPENAI in known else None
    if root is None or _field(chat, "http_async_client") is not None:
        return chat
    client = with_own_connections(root)
    update = {"root_async_client": client, "async_client": client.chat.completions}
    return chat.model_copy(update=update)


def _cached_properties(cls: type) -> list[str]:
    return [
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, functools.cached_property)
    ]


def _base_url(chat: BaseChatModel) -> str | None:
    root = _field(chat, "root_client") or _field(chat, "root_async_client")
    url = _field(root, "base_url")
    for name in ("openai_api_base", "anthropic_api_url", "base_url", "endpoint"):
        url = url or _field(chat, name)
    return without_credentials(str(url)) if url else None


def without_credentials(url: str) -> str:
    """`url` without user, password, query and fragment."""
    parts = urlsplit(url)
    return (
        f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else url
    )


def _settings(chat: BaseChatModel) -> dict[str, Any]:
    """What the model itself would put into a cache key: its sampling, never its key."""
    names = ("temperature", "top_p", "top_k", "seed", "reasoning_effort", "reasoning", "thinking")
    values = {name: _field(chat, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
