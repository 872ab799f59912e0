"""A client of the `openai` package in the hosted role: OpenAI, vLLM, SGLang, OpenRouter and others.

The package is imported only where a client's other flavour has to be built.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from langchain_relay.delegates.caching import cache_key, cache_rule, marked
from langchain_relay.delegates.chat_model import messages_bound, without_credentials
from langchain_relay.delegates.chunks import cost_usd, families, normal_finish
from langchain_relay.delegates.clients import CONTINUE_FLAGS, OF_THE_RELAY
from langchain_relay.delegates.continuation import (
    PromptBuilder,
    Repeated,
    check_mode,
    completion_prompt,
    continue_messages,
)
from langchain_relay.delegates.failures import building, translated
from langchain_relay.delegates.hosts import HostRule, Spelling, host_rule, is_openais_host
from langchain_relay.delegates.loops import PerLoop, has_default_transport, with_own_connections
from langchain_relay.delegates.probe import Probing
from langchain_relay.delegates.reasoning import least_reasoning
from langchain_relay.delegates.responses import (
    ResponsesReader,
    input_items,
    reasoning_settings,
)
from langchain_relay.delegates.settings import without_secrets
from langchain_relay.delegates.tokenizers import (
    Tokenizer,
    Vocabulary,
    check_tokenizer,
    texts_bound,
    vocabulary_of,
)
from langchain_relay.engine.values import Attempt, Delta, Mode, Usage
from langchain_relay.errors import (
    DelegateError,
    DelegateTruncated,
    UnknownDelegate,
    UsageMistake,
)
from langchain_relay.local.template import compiled

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

__all__ = ["OpenAIDelegate"]

Api = Literal["chat", "responses", "completions"]
LimitName = Literal["max_tokens", "max_completion_tokens", "max_output_tokens"]


class OpenAIDelegate(Probing):
    """Hands spans to whatever an `openai.OpenAI` or `openai.AsyncOpenAI` client talks to.

    ```python
    OpenAIDelegate(openai.OpenAI(), model="gpt-5-mini")
    OpenAIDelegate(openai.OpenAI(), model="gpt-5-mini", api="responses")
    OpenAIDelegate(openai.OpenAI(base_url=vllm), model="qwen", mode="flag")
    OpenAIDelegate(openai.OpenAI(base_url=vllm), model="qwen-base", api="completions")
    ```

    The client is copied with its retries off. One flavour is enough: the other is built from the
    same key, address, headers and query when it is first needed. That cannot be done for a client
    with an `http_client` or a key function of its own, or of a subclass such as `AzureOpenAI`;
    give both then.

    Args:
        client: Either flavour.
        model: The model's name at the host.
        async_client: The async flavour, if `client` is the sync one.
        api: `chat` for `/chat/completions`, `responses` for `/responses`, `completions` for
            `/completions`. `None`: `chat`, but for OpenAI's completion models. OpenAI's Responses
            API refuses limits under 16 tokens.
        mode: How a draft is shown. `None`: what `delegates/hosts.py` says of address and model,
            `instruct` for who is not in there; `completion` for the completions API.
        flag: How `flag` mode is written: `prefix` or `partial` on the message, or the request's
            `continue_final_message` (vLLM, SGLang). `None`: what the table says, else the last.
        limit_name: Parameter that carries the limit; by default `max_completion_tokens` at OpenAI
            and Azure, `max_tokens` elsewhere and for the completions API, `max_output_tokens` for
            the Responses API.
        prompt: For the completions API: a function of (messages, draft), or the model's Jinja
            chat template. `None`: a plain transcript.
        extra_body: Further fields of the request. Reasoning is turned off or to its least where
            `delegates/reasoning.py` knows how, unless these fields say otherwise.
        name: What to call the model in events, spans and prices; by default `model`.
        tokenizer: The model's tokenizer: a function from a text to token ids, or the name of an
            encoding. `None`: what is at hand for `model`; see `ChatModelDelegate`.
        prompt_cache: As in `ChatModelDelegate`.

    Raises:
        MissingExtra: the encoding is not at hand; nothing is downloaded.
        UnknownDelegate: `client` is no client of the `openai` package.
        UsageMistake: `api` or `mode` is unknown, they do not go together, `prompt` is no template,
            or `extra_body` sets the limit of a reply or asks for several.
    """

    def __init__(
        self,
        client: OpenAI | AsyncOpenAI,
        *,
        model: str,
        async_client: AsyncOpenAI | None = None,
        api: Api | None = None,
        mode: Mode | None = None,
        flag: Spelling | None = None,
        limit_name: LimitName | None = None,
        prompt: PromptBuilder | str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        name: str | None = None,
        tokenizer: Tokenizer | str | None = None,
        prompt_cache: bool | None = None,
    ) -> None:
        check_tokenizer(tokenizer)
        _check_extra_body(extra_body or {})
        _check_names(flag, limit_name)
        self._for_model = partial(
            OpenAIDelegate,
            client,
            async_client=async_client,
            api=api,
            mode=mode,
            flag=flag,
            limit_name=limit_name,
            prompt=prompt,
            extra_body=extra_body,
            tokenizer=tokenizer,
            prompt_cache=prompt_cache,
        )
        self._others: dict[str, OpenAIDelegate] = {}
        self._tokenizer = tokenizer
        self._clients = _Clients(client, async_client)
        self._model = model
        self._named = name
        address = self._clients.base_url.partition("://")[2]
        rule = host_rule((), address, model)
        self._api, self._mode = _api_and_mode(api, mode, rule)
        self._flag: Spelling = flag or (rule and rule.flag) or "continue_final_message"
        self._echoes = self._mode == "flag" and rule is not None and rule.echoes
        self._limit_name = limit_name or _limit_name(self._clients.base_url, self._api)
        self._prompt = prompt
        if isinstance(prompt, str):
            compiled(prompt)
        least = least_reasoning((), address, model) if self._api != "completions" else None
        self._extra_body = {**(least.body if least else {}), **(extra_body or {})}
        self._cache = cache_rule(frozenset(), address, model, wanted=prompt_cache)
        if self._api == "completions" or {"prompt_cache_key", "prompt_cache_options"} & set(
            self._extra_body
        ):
            self._cache = None  # it has none of that, or the user steers it
        settings = dict(least.settings) if least else {}
        if self._api == "responses":
            settings = reasoning_settings(settings)
        self._settings = {k: v for k, v in settings.items() if k not in self._extra_body}
        if self._api == "chat":
            self._take_verdict(mode)

    @property
    def model(self) -> str:
        """See `Delegate.model`."""
        return self._named or self._model

    @property
    def mode(self) -> Mode:
        """See `Delegate.mode`."""
        return self._mode

    @property
    def base_url(self) -> str:
        """Where requests go, without credentials; delegates that share it share a breaker."""
        return without_credentials(self._clients.base_url)

    @property
    def provider(self) -> str:
        """The protocol's; whose model it is, the address tells."""
        return "openai"

    @property
    def worst_attempts(self) -> int:
        """See `Delegate.worst_attempts`. The client's retries are off."""
        return 1

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """See `Delegate.fingerprint`."""
        return {
            "delegate": f"openai.{self._api}",
            "model": self._model,
            "mode": self._mode,
            "base_url": self.base_url,
            "limit_name": self._limit_name,
            "prompt": self._prompt if isinstance(self._prompt, str) else bool(self._prompt),
            "flag": self._flag if self._mode == "flag" else None,
            "extra_body": without_secrets(self._extra_body),
            "settings": self._settings,
            "client": self._clients.settings,
        }

    def for_model(self, name: str) -> OpenAIDelegate:
        """The same for another model of that host: its mode, its reasoning, its cache."""
        if type(self) is not OpenAIDelegate:
            return self  # what a class of the user's own needs nobody here knows
        if name not in self._others:
            self._others[name] = self._for_model(model=name)
        return self._others[name]

    def input_bound(self, attempt: Attempt) -> int:
        """See `Delegate.input_bound`. Counted by the model's tokenizer where it is at hand."""
        vocabulary = self.vocabulary(attempt.model)
        if self._api == "completions":
            return texts_bound([self._raw_prompt(attempt)], vocabulary)
        return messages_bound(self._messages(attempt), vocabulary)

    def vocabulary(self, model: str | None = None) -> Vocabulary | None:
        """The tokenizer of the model, or of `model` in its place; `None`: it is not at hand."""
        return vocabulary_of(model or self._model, self._tokenizer)

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        """See `Delegate.stream`.

        Raises:
            DelegateError: the host failed; its subclasses say how.
        """
        reader = self._reader(attempt)
        with building(self.model):
            request = self._request(attempt)
        with translated(self.model, lambda: reader.received):
            create = self._endpoint(self._clients.sync).create
            with create(**request) as chunks:
                yield Delta()  # the response header has come
                for chunk in chunks:
                    yield reader.read(chunk)
            reader.end()

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        """Async twin of `stream`."""
        reader = self._reader(attempt)
        with building(self.model):
            request = self._request(attempt)
        with translated(self.model, lambda: reader.received):
            create = self._endpoint(self._clients.asynchronous).create
            async with await create(**request) as chunks:
                yield Delta()
                async for chunk in chunks:
                    yield reader.read(chunk)
            reader.end()

    # --- one request ----------------------------------------------------------------------------

    def _endpoint(self, client: Any) -> Any:
        if self._api == "responses":
            return client.responses
        return client.completions if self._api == "completions" else client.chat.completions

    def _reader(self, attempt: Attempt) -> _Reader | ResponsesReader:
        repeated = Repeated(attempt.draft if self._echoes else "")
        return ResponsesReader(repeated) if self._api == "responses" else _Reader(repeated)

    def _messages(self, attempt: Attempt) -> list[BaseMessage]:
        return continue_messages(
            attempt.messages,
            attempt.draft,
            self._mode,
            clipped=attempt.clipped,
        )

    def _cached(self, attempt: Attempt, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """What steers the host's cache: marks in `messages`, and fields of the request."""
        if self._cache is None:
            return {}
        own = convert_to_openai_messages(list(attempt.messages))
        contents = marked(
            [message.get("content") or "" for message in messages],
            [message.get("content") or "" for message in own],
            [message["role"] == "assistant" for message in messages],
            attempt.draft,
            self._cache,
            again=attempt.again,
        )
        for message, content in zip(messages, contents, strict=True):
            if content:
                message["content"] = content
        return {**self._cache.options, **self._routing(attempt)}

    def _routing(self, attempt: Attempt) -> dict[str, Any]:
        """What brings requests that begin alike to one machine of the host's."""
        routed = self._cache is not None and self._cache.routed
        return {"prompt_cache_key": cache_key(attempt.messages)} if routed else {}

    def _raw_prompt(self, attempt: Attempt) -> str:
        try:
            return completion_prompt(attempt.messages, attempt.draft, self._prompt)
        except UsageMistake as error:  # these messages: the template itself was read before
            raise DelegateError(f"{self.model}: {error}", retryable=False, sent=False) from error

    def _request(self, attempt: Attempt) -> dict[str, Any]:
        """What `create` is called with. Stop strings are not sent: see `ChatModelDelegate`."""
        request: dict[str, Any] = {
            "model": attempt.model or self._model,
            self._limit_name: attempt.max_tokens,
            "stream": True,
            **self._shown(attempt),
            **self._settings,
        }
        flagged = self._mode == "flag" and bool(attempt.draft.strip())
        if flagged and self._flag != "continue_final_message":
            request["messages"][-1][self._flag] = True
        flags = CONTINUE_FLAGS if flagged and self._flag == "continue_final_message" else {}
        if body := {**self._extra_body, **flags}:
            request["extra_body"] = body
        if attempt.timeout_s is not None:
            request["timeout"] = attempt.timeout_s
        return request

    def _shown(self, attempt: Attempt) -> dict[str, Any]:
        """Conversation and draft, and how the API is asked for the usage."""
        if self._api == "responses":  # it tells the usage unasked
            return {"input": input_items(self._messages(attempt)), **self._routing(attempt)}
        usage = {"stream_options": {"include_usage": True}}
        if self._api == "completions":
            return {**usage, "prompt": self._raw_prompt(attempt)}
        messages = convert_to_openai_messages(self._messages(attempt))
        return {**usage, **self._cached(attempt, messages), "messages": messages}


class _Reader:
    """Reads one attempt's chunks, of either API."""

    def __init__(self, repeated: Repeated) -> None:
        self._repeated = repeated
        self.received = False
        self._finished = False

    def read(self, chunk: Any) -> Delta:
        self.received = True
        choice = next(iter(chunk.choices or ()), None)
        finish = normal_finish(getattr(choice, "finish_reason", None))
        self._finished = self._finished or finish is not None
        usage = getattr(chunk, "usage", None)
        return Delta(
            text=self._repeated.take(_text(choice), ended=self._finished),
            usage=_usage(usage) if usage else None,
            finish=finish,
            model=chunk.model or None,
            cost_usd=cost_usd(getattr(usage, "cost", None)),  # OpenRouter
        )

    def end(self) -> None:
        if not self._finished:
            raise DelegateTruncated(
                "the stream ended without a finish reason", retryable=True, sent=True
            )


def _text(choice: Any) -> str:
    if (delta := getattr(choice, "delta", None)) is not None:
        return delta.content or ""
    return getattr(choice, "text", None) or ""


def _usage(usage: Any) -> Usage:
    read = getattr(usage, "prompt_tokens_details", None)
    wrote = getattr(usage, "completion_tokens_details", None)
    return Usage(
        input_tokens=getattr(usage, "prompt_tokens", None) or 0,
        output_tokens=getattr(usage, "completion_tokens", None) or 0,
        cached_input_tokens=_first(
            getattr(read, "cached_tokens", None),
            getattr(usage, "prompt_cache_hit_tokens", None),  # DeepSeek's own name
            getattr(usage, "cached_tokens", None),  # Kimi's
        ),
        cache_write_tokens=getattr(read, "cache_write_tokens", None),
        reasoning_tokens=getattr(wrote, "reasoning_tokens", None),
    )


def _first(*counts: int | None) -> int | None:
    """The first count that was given."""
    return next((count for count in counts if count is not None), None)


def _api_and_mode(api: Api | None, mode: Mode | None, rule: HostRule | None) -> tuple[Api, Mode]:
    """What the user says, completed by what is known of the host."""
    check_mode(mode)
    if api is not None and api not in get_args(Api):
        raise UsageMistake(f"api={api!r}: one of {', '.join(get_args(Api))}, or None")
    known: Mode = "instruct" if rule is None else rule.mode
    if api is None:
        api = "completions" if (mode or known) == "completion" else "chat"
    if mode is None:
        named = known == "completion" or (api, known) == ("responses", "flag")
        chat: Mode = "instruct" if named else known
        mode = "completion" if api == "completions" else chat
    if (mode == "completion") != (api == "completions"):
        raise UsageMistake(
            f"mode={mode!r} does not go with api={api!r}: the completions API takes a raw prompt "
            f"(mode='completion'), the others take messages (any other mode)"
        )
    if (api, mode) == ("responses", "flag"):
        raise UsageMistake(
            "mode='flag' does not go with api='responses': its input items have no flags; use "
            "api='chat', or mode='instruct'"
        )
    return api, mode


def _check_extra_body(extra_body: Mapping[str, Any]) -> None:
    """Refuse fields that would win over what the relay says of each request.

    Raises:
        UsageMistake: there are some.
    """
    if taken := sorted(OF_THE_RELAY & set(extra_body)):
        raise UsageMistake(
            f"extra_body has {', '.join(taken)}, which the relay says itself: each request is for "
            f"one reply of at most the tokens it has reserved; leave it out, and bound spans by "
            f"max_span_tokens"
        )


def _check_names(flag: Spelling | None, limit_name: LimitName | None) -> None:
    """A misspelt name would be sent as it stands.

    Raises:
        UsageMistake: a name that nobody knows.
    """
    for name, value, known in (
        ("flag", flag, get_args(Spelling)),
        ("limit_name", limit_name, get_args(LimitName)),
    ):
        if value is not None and value not in known:
            raise UsageMistake(f"{name}={value!r}: one of {', '.join(known)}, or None")


def _limit_name(base_url: str, api: str) -> str:
    if api == "responses":
        return "max_output_tokens"
    newer = api == "chat" and is_openais_host(base_url)
    return "max_completion_tokens" if newer else "max_tokens"


# --- clients ------------------------------------------------------------------------------------


class _Clients:
    """Both flavours of one client, each with its retries off."""

    def __init__(self, client: Any, async_client: Any) -> None:
        given = [c for c in (client, async_client) if c is not None]
        for one in given:
            if not is_openai_client(one):
                raise UnknownDelegate(
                    f"OpenAIDelegate takes an openai.OpenAI or openai.AsyncOpenAI client, "
                    f"not {type(one).__name__}"
                )
        self._given = {_is_async(one): one for one in given}
        if len(self._given) < len(given):
            raise UnknownDelegate("OpenAIDelegate takes one client of each flavour, not two of one")
        self._per_loop: PerLoop[Any] = PerLoop()

    @property
    def base_url(self) -> str:
        return str(next(iter(self._given.values())).base_url)

    @property
    def settings(self) -> dict[str, Any]:
        """What may change replies, without secrets."""
        client = next(iter(self._given.values()))
        known = {
            "organization": client.organization,
            "project": client.project,
            "default_query": client._custom_query,  # noqa: SLF001 - there is no public view
            "default_headers": client._custom_headers,  # noqa: SLF001 - the public view has the key in it
        }
        return {name: without_secrets(value) for name, value in known.items() if value}

    @cached_property
    def sync(self) -> Any:
        return self._flavour(asynchronous=False).with_options(max_retries=0)

    @property
    def asynchronous(self) -> Any:
        return self._per_loop.get(lambda: with_own_connections(self._flavour(asynchronous=True)))

    def _flavour(self, *, asynchronous: bool) -> Any:
        if asynchronous in self._given:
            return self._given[asynchronous]
        return _other_flavour(self._given[not asynchronous], asynchronous=asynchronous)


def is_openai_client(value: object) -> bool:
    """Whether `value` is a client of the `openai` package, told without importing it."""
    return any(
        cls.__module__.split(".")[0] == "openai" and cls.__name__ in {"OpenAI", "AsyncOpenAI"}
        for cls in type(value).__mro__
    )


def _is_async(client: object) -> bool:
    return "AsyncOpenAI" in families(client)


def _other_flavour(client: Any, *, asynchronous: bool) -> Any:
    """A client of the other flavour with the same settings.

    Raises:
        UsageMistake: a setting has no counterpart in the other flavour.
    """
    import openai

    if reason := _not_convertible(client):
        have, need = type(client).__name__, "async" if asynchronous else "sync"
        raise UsageMistake(
            f"the {need} flavour of this {have} client cannot be built because {reason}; give "
            f"both: OpenAIDelegate(openai.OpenAI(...), async_client=openai.AsyncOpenAI(...), ...)"
        )
    flavour = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    return flavour(
        api_key=client.api_key,
        organization=client.organization,
        project=client.project,
        base_url=client.base_url,
        timeout=client.timeout,
        default_headers=client._custom_headers,  # noqa: SLF001 - the public view has the key in it
        default_query=client._custom_query,  # noqa: SLF001 - there is no public view
    )


def _not_convertible(client: Any) -> str | None:
    if type(client).__name__ not in {"OpenAI", "AsyncOpenAI"}:
        return "it is of a class of its own"
    if not has_default_transport(client):
        return "it has an `http_client` of its own"
    for name in ("_api_key_provider", "_provider", "workload_identity"):
        if getattr(client, name, None) is not None:
            return "its key comes from a function"
    return None
