"""Any LangChain chat model in the hosted role.

One attempt runs the model's own `_stream` or `_astream`: not `stream`, which would open a run of
its own and end it with an error whenever a span is cut. The client's retries are off, because a
request nobody counts is money nobody reserved.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import aclosing, closing
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_relay.delegates.caching import cache_key, cache_rule, with_breakpoints
from langchain_relay.delegates.chunks import ChunkReader, families
from langchain_relay.delegates.clients import (
    Family,
    copied_without_retries,
    family_of,
    field,
)
from langchain_relay.delegates.continuation import Repeated, check_mode, continue_messages
from langchain_relay.delegates.failures import building, translated
from langchain_relay.delegates.hosts import HostRule, Spelling, host_rule
from langchain_relay.delegates.loops import PerLoop
from langchain_relay.delegates.probe import Probing
from langchain_relay.delegates.pump import pulled
from langchain_relay.delegates.reasoning import least_reasoning
from langchain_relay.delegates.settings import settings_of
from langchain_relay.delegates.tokenizers import (
    Tokenizer,
    Vocabulary,
    check_tokenizer,
    texts_bound,
    vocabulary_of,
)
from langchain_relay.engine.values import Attempt, Delta, Mode
from langchain_relay.errors import UnknownDelegate, UsageMistake

__all__ = ["ChatModelDelegate"]

_REASONING_FIELDS = (
    "reasoning",
    "reasoning_effort",
    "thinking",
    "thinking_budget",
    "thinking_level",
)
"""Fields by which a user says how much a model is to reason."""


class ChatModelDelegate(Probing):
    """Hands spans to a LangChain chat model.

    ```python
    ChatModelDelegate(ChatOpenAI(model="gpt-5-mini"))
    ```

    The model is copied with its own retries off, and with its reasoning turned off or to its least
    where `delegates/reasoning.py` knows how and you have not set it yourself: hidden reasoning uses
    up the few tokens of a span. How long a reply is, and that it is one (`n`), is the relay's to
    say, in `extra_body` and `model_kwargs` too. It keeps everything else: key, address, headers,
    temperature, rate limiter. Stop strings of a call are not sent: providers leave them out of the
    text, so that nobody could see where the caller's cut belongs.

    Args:
        model: The chat model.
        mode: How a draft is shown to it. `None`: what `delegates/hosts.py` says of the provider
            and the model; `instruct` for who is not in there.
        flag: How `flag` mode is written: `prefix` or `partial` on the message, or the request's
            `continue_final_message` (vLLM, SGLang). `None`: what the table says, else the last
            one for `ChatOpenAI` and its relatives, and `prefix` for others. `ChatAnthropic`,
            `ChatOllama` and `ChatGoogleGenerativeAI` cannot send any.
        name: What to call the model in events, spans and prices; by default its own name.
        worst_attempts: Requests one attempt may send at most. By default 1 where this package
            knows how to turn retries off, else 1 + the model's `max_retries`, else unknown.
        tokenizer: The hosted model's tokenizer, so that spans are cut at exactly n tokens and
            prompts counted: a function from a text to token ids, or the name of an encoding such
            as `"o200k_base"`. `None`: the model's own `custom_get_token_ids`, else what
            `delegates/tokenizers.py` finds at hand for its name, else none: spans are cut at 8n
            bytes.
        prompt_cache: Whether the host's prompt cache is steered, as `delegates/caching.py` says:
            breakpoints for Claude and GPT-5.6, a cache key for OpenAI. `None`: where the table
            knows the host, unless you set cache options yourself; `False`: never; `True`: also at
            an address it does not know.

    Raises:
        MissingExtra: the encoding is not at hand; nothing is downloaded.
        UnknownDelegate: `model` is no chat model.
        UsageMistake: `mode` is unknown, `completion`, which has no chat messages, or `flag` for a
            class that cannot send one.
    """

    def __init__(
        self,
        model: BaseChatModel,
        *,
        mode: Mode | None = None,
        flag: Spelling | None = None,
        name: str | None = None,
        worst_attempts: int | None = None,
        tokenizer: Tokenizer | str | None = None,
        prompt_cache: bool | None = None,
    ) -> None:
        check_mode(mode)
        if not isinstance(model, BaseChatModel):
            raise UnknownDelegate(
                f"ChatModelDelegate takes a LangChain chat model, not {type(model).__name__}"
            )
        if mode == "completion":
            raise UsageMistake(
                "completion mode sends a raw prompt, which chat models do not take; use "
                'OpenAIDelegate(client, model=..., api="completions")'
            )
        self._family = family_of(model)
        check_tokenizer(tokenizer)
        self._for_model = partial(
            _renamed,
            model,
            mode=mode,
            flag=flag,
            worst_attempts=worst_attempts,
            tokenizer=tokenizer,
            prompt_cache=prompt_cache,
        )
        self._others: dict[str, ChatModelDelegate] = {}
        self._tokenizer = tokenizer or model.custom_get_token_ids
        self._named = name
        rule = host_rule(families(model), _address(model), _model_name(model))
        self._mode: Mode = mode or _default_mode(model, rule)
        self._flag: Spelling = flag or (rule and rule.flag) or self._family.default_flag
        if self._mode == "flag":
            _check_flag(model, self._family, self._flag)
        self._echoes = self._mode == "flag" and rule is not None and rule.echoes
        self._worst = worst_attempts or _worst_attempts(model, self._family)
        self._chat = _with_least_reasoning(copied_without_retries(model))
        self._cache = cache_rule(
            families(model), _address(model), _model_name(model), wanted=prompt_cache
        )
        if _cache_options(model) & {"prompt_cache_options", "prompt_cache_key"}:
            self._cache = None  # the user steers it
        self._per_loop: PerLoop[BaseChatModel] = PerLoop()
        self._take_verdict(mode)

    @property
    def model(self) -> str:
        """See `Delegate.model`."""
        return self._named or _model_name(self._chat)

    @property
    def mode(self) -> Mode:
        """See `Delegate.mode`."""
        return self._mode

    @property
    def chat(self) -> BaseChatModel:
        """The chat model that is asked: a copy that does not retry."""
        return self._chat

    @property
    def rate_limiter(self) -> BaseRateLimiter | None:
        """The wrapped model's own limiter; whoever sends an attempt waits for it."""
        return self._chat.rate_limiter

    @property
    def base_url(self) -> str | None:
        """Where requests go, without credentials; delegates that share it share a breaker."""
        return _base_url(self._chat)

    @property
    def provider(self) -> str | None:
        """Whose model it is, as LangChain calls it in traces."""
        return self._chat._get_ls_params().get("ls_provider")  # noqa: SLF001 - there is no other way

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
            "model": _model_name(self._chat),  # a name of the user's may stand for several
            "mode": self._mode,
            "base_url": self.base_url,
            "flag": self._flag if self._mode == "flag" else None,
            "settings": settings_of(self._chat),
        }

    def for_model(self, name: str) -> ChatModelDelegate:
        """The same for another model of that class: its mode, its reasoning, its cache."""
        if type(self) is not ChatModelDelegate:
            return self  # what a class of the user's own needs nobody here knows
        if name not in self._others:
            self._others[name] = self._for_model(name)
        return self._others[name]

    def input_bound(self, attempt: Attempt) -> int:
        """See `Delegate.input_bound`. Counted by the model's tokenizer where it is at hand."""
        return messages_bound(self._messages(attempt), self.vocabulary(attempt.model))

    def vocabulary(self, model: str | None = None) -> Vocabulary | None:
        """The tokenizer of the model, or of `model` in its place; `None`: it is not at hand."""
        return vocabulary_of(model or _model_name(self._chat), self._tokenizer)

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
        if _is_sync_only(self._chat):
            run = attempt.run_manager and attempt.run_manager.get_sync()
            asked = replace(attempt, run_manager=run)
            async with aclosing(pulled(lambda: self.stream(asked))) as deltas:
                async for delta in deltas:
                    yield delta
            return
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
        if self._flags(attempt) and self._family.marks:
            flagged = {**messages[-1].additional_kwargs, self._flag: True}
            messages[-1] = messages[-1].model_copy(update={"additional_kwargs": flagged})
        return messages

    def _flags(self, attempt: Attempt) -> bool:
        return self._mode == "flag" and bool(attempt.draft.strip())

    def _request(
        self, chat: BaseChatModel, attempt: Attempt
    ) -> tuple[BaseChatModel, dict[str, Any]]:
        """The model set to this attempt's limit, and the keyword arguments of its `_stream`."""
        chat, kwargs = self._family.limited(chat, attempt)
        if self._family.steers_cache and self._cache is not None:
            kwargs |= self._cache.options
            if self._cache.routed:
                kwargs["prompt_cache_key"] = cache_key(attempt.messages)
        if self._flags(attempt):
            chat, flags = self._family.flagged(chat, self._flag)
            kwargs |= flags
        return chat, kwargs

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
        with building(self.model):
            own = self._per_loop.get(lambda: self._family.on_this_loop(self._chat))
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


def messages_bound(messages: list[BaseMessage], vocabulary: Vocabulary | None = None) -> int:
    """An upper bound of the input tokens of a conversation.

    One token per UTF-8 byte where there is no tokenizer; and what the chat format adds.
    """
    texts = [
        message.content
        if isinstance(message.content, str)
        and message.type in {"human", "system"}
        and not message.name
        else json.dumps(message.model_dump(), ensure_ascii=False, default=str)
        for message in messages
    ]
    return texts_bound(texts, vocabulary)


def _only(result: ChatResult) -> ChatGeneration:
    """The one reply of a model that does not stream, with what only the whole result knows."""
    generation = result.generations[0]
    known = {**(result.llm_output or {}), **(generation.generation_info or {})}
    return generation.model_copy(update={"generation_info": known})


def _streams(chat: BaseChatModel, methods: tuple[str, ...]) -> bool:
    """Whether the class has one of these methods of its own and is allowed to stream."""
    own = any(getattr(type(chat), name) is not getattr(BaseChatModel, name) for name in methods)
    return own and chat.disable_streaming is not True


def _is_sync_only(chat: BaseChatModel) -> bool:
    """Whether langchain-core would read this model on an executor, which cannot be broken off."""
    read_by = "_stream" if _streams(chat, ("_stream", "_astream")) else "_generate"
    own = [
        getattr(type(chat), n) is not getattr(BaseChatModel, n)
        for n in (read_by, f"_a{read_by[1:]}")
    ]
    return own == [True, False]


# --- what is known of classes -------------------------------------------------------------------


_CACHE_OPTIONS = (
    "cache_control",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)


def _cache_options(chat: BaseChatModel) -> set[str]:
    """The fields by which the user steers the host's cache."""
    extra = {**(field(chat, "model_kwargs") or {}), **(field(chat, "extra_body") or {})}
    return {name for name in _CACHE_OPTIONS if name in extra or field(chat, name) is not None}


_MODEL_FIELDS = ("model_name", "model", "model_id", "deployment_name", "azure_deployment")


def _model_name(chat: BaseChatModel) -> str:
    found = (field(chat, name) for name in _MODEL_FIELDS)
    return next((one for one in found if isinstance(one, str) and one), type(chat).__name__)


def _renamed(chat: BaseChatModel, name: str, **options: Any) -> ChatModelDelegate:
    fields = type(chat).model_fields
    known = next((one for one in _MODEL_FIELDS if one in fields and field(chat, one)), None)
    renamed = chat.model_copy(update={known: name}) if known else chat
    return ChatModelDelegate(renamed, name=name, **options)


def _address(chat: BaseChatModel) -> str:
    return (_base_url(chat) or "").partition("://")[2]


def _default_mode(model: BaseChatModel, rule: HostRule | None) -> Mode:
    if rule is None or rule.mode == "completion":
        return "instruct"
    thinking = field(model, "thinking") or {}
    if isinstance(thinking, Mapping) and thinking.get("type") not in {None, "disabled"}:
        return "instruct"  # Claude refuses a prefilled answer while it thinks
    return rule.mode


def _check_flag(model: BaseChatModel, family: Family, flag: Spelling) -> None:
    """Refuse a flag that would not leave the machine.

    Raises:
        UsageMistake: the class drops it.
    """
    # The Responses API has input items instead of messages; the class drops keys of its own.
    drops = field(model, "use_responses_api") is True and flag != "continue_final_message"
    if flag in family.flags and not drops:
        return
    raise UsageMistake(
        f"{type(model).__name__} cannot send the flag {flag!r}, so mode='flag' would not be what "
        f"the host gets; use mode='prefill' where the host continues a trailing assistant "
        f"message, else mode='instruct'"
    )


def _worst_attempts(model: BaseChatModel, family: Family) -> int | None:
    if family.most_requests is not None:
        return family.most_requests
    if type(model).__module__.startswith("langchain_core."):
        return 1
    retries = field(model, "max_retries")
    # Elsewhere the field is set to 0 too, but nobody has counted requests: expect the worst.
    return 1 + retries if isinstance(retries, int) and retries >= 0 else None


def _with_least_reasoning(model: BaseChatModel) -> BaseChatModel:
    rule = least_reasoning(families(model), _address(model), _model_name(model))
    if rule is None or any(field(model, name) is not None for name in _REASONING_FIELDS):
        return model
    fields = type(model).model_fields
    # A copy is updated by the names of fields, and a setting may be known by its alias.
    names = {known.alias: name for name, known in fields.items() if known.alias}
    settings = {names.get(name, name): value for name, value in rule.settings.items()}
    update = {name: value for name, value in settings.items() if name in fields}
    more = family_of(model).more_fields
    if more in fields:
        rest = {name: value for name, value in settings.items() if name not in fields}
        if added := {**rest, **rule.body}:
            update[more] = {**added, **(field(model, more) or {})}
    return model.model_copy(update=update) if update else model


def _base_url(chat: BaseChatModel) -> str | None:
    url = family_of(chat).base_url(chat)
    return without_credentials(url) if url else None


def without_credentials(url: str) -> str:
    """`url` without user, password, query and fragment."""
    parts = urlsplit(url)
    return (
        f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else url
    )
