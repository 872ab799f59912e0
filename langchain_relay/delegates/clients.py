"""What each family of LangChain chat models needs so that one attempt is one request.

A family is found by the name of a class or of one of its bases; no vendor package is imported for
that. Four things differ: where the client's own retries are turned off, where async connections
live (a pool of a closed event loop raises "Event loop is closed"), by which keyword the limit of
one call goes, and how a flag gets into the request. Each was counted or read at the fault server
with langchain-openai 1.7.3, -anthropic 1.7.7, -deepseek 1.1.1, -google-genai 4.4.2, -groq 1.1.3,
-mistralai 1.1.6, -ollama 1.1.0 and -litellm 0.11.2.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel

from langchain_relay.delegates.chunks import families
from langchain_relay.delegates.hosts import is_openais
from langchain_relay.delegates.litellm import OnlyReported
from langchain_relay.delegates.loops import with_own_connections

if TYPE_CHECKING:
    from langchain_relay.delegates.hosts import Spelling
    from langchain_relay.engine.values import Attempt

__all__ = [
    "CONTINUE_FLAGS",
    "OF_THE_RELAY",
    "Family",
    "copied_without_retries",
    "family_of",
]

CONTINUE_FLAGS = {"continue_final_message": True, "add_generation_prompt": False}
"""vLLM and SGLang: go on with the last message instead of opening a new one."""

_LIMIT_FIELDS = (
    *("max_tokens", "max_output_tokens", "max_completion_tokens"),
    *("num_predict", "max_new_tokens", "n_predict"),
)
"""Names under which chat models keep the limit of a reply; the first one a class has is set."""

OF_THE_RELAY = frozenset({*_LIMIT_FIELDS, "n", "best_of", "candidate_count", "stream"})
"""What only the relay may say of a request: how much is written, and that it is one reply. Further
fields of the body would win over what is said of a call, and cost more than was reserved."""

_GEMINI_LEAST_TIMEOUT_S = 10.0
"""The API is told the client's timeout and refuses a shorter one (livekit/agents issue 3723)."""


def field(thing: object, name: str) -> Any:
    """An attribute, or `None`."""
    return getattr(thing, name, None)


class Family:
    """Classes nobody here knows: their fields say what can be set.

    Attributes:
        most_requests: What an attempt is known to send at most once `without_retries` was applied;
            `None`: nobody has counted.
        flags: Spellings that reach the request.
        marks: A flag on the message is read from its `additional_kwargs`.
        default_flag: The spelling where nothing is known of the host.
        more_fields: The field with what a request has beside the class's own fields.
        steers_cache: OpenAI's options of the prompt cache are keywords of a call.
    """

    most_requests: int | None = None
    steers_cache = False
    flags: frozenset[Spelling] = frozenset({"prefix", "partial"})
    marks = True
    default_flag: Spelling = "prefix"
    more_fields = "extra_body"

    def base_url(self, chat: BaseChatModel) -> str | None:
        """Where requests go."""
        root = field(chat, "root_client") or field(chat, "root_async_client")
        names = ("openai_api_base", "anthropic_api_url", "base_url", "endpoint", "api_base")
        found = [field(root, "base_url"), *(field(chat, name) for name in names)]
        return next((str(url) for url in found if url), None)

    def without_retries(self, chat: BaseChatModel) -> dict[str, Any]:  # noqa: ARG002 - others need it
        """Fields of a copy, beside `max_retries`, whose clients send each request once."""
        return {}

    def on_this_loop(self, chat: BaseChatModel) -> BaseChatModel:
        """The model with async connections that belong to the running loop."""
        return chat

    def limited(
        self, chat: BaseChatModel, attempt: Attempt
    ) -> tuple[BaseChatModel, dict[str, Any]]:
        """The model and the keywords of its `_stream` that set model, limit and time."""
        kwargs: dict[str, Any] = {} if attempt.model is None else {"model": attempt.model}
        for name in _LIMIT_FIELDS:
            if name in type(chat).model_fields:
                return chat.model_copy(update={name: attempt.max_tokens}), kwargs
        return chat, {**kwargs, "max_tokens": attempt.max_tokens}

    def flagged(
        self,
        chat: BaseChatModel,
        flag: Spelling,  # noqa: ARG002 - others need it
    ) -> tuple[BaseChatModel, dict[str, Any]]:
        """The model and the keywords of its `_stream` that carry a flag, beside its mark."""
        return chat, {}


class _ByKeyword(Family):
    """A keyword of the call wins over the model's own limit, under whatever name it is sent."""

    most_requests = 1
    timeout = True

    def limited(
        self, chat: BaseChatModel, attempt: Attempt
    ) -> tuple[BaseChatModel, dict[str, Any]]:
        kwargs: dict[str, Any] = {"max_tokens": attempt.max_tokens}
        if attempt.model is not None:
            kwargs["model"] = attempt.model
        if self.timeout and attempt.timeout_s is not None:
            kwargs["timeout"] = attempt.timeout_s
        return chat, kwargs


class _OpenAI(_ByKeyword):
    """`ChatOpenAI` and its relatives; their clients are built already when we get them."""

    steers_cache = True
    flags = frozenset({"prefix", "partial", "continue_final_message"})
    marks = False
    default_flag = "continue_final_message"

    def without_retries(self, chat: BaseChatModel) -> dict[str, Any]:
        # In the Responses API a limit of the model's own would win over that of the call.
        clients: dict[str, Any] = {"max_tokens": None}
        for root_name, name in (("root_client", "client"), ("root_async_client", "async_client")):
            root = field(chat, root_name) or field(field(chat, name), "_client")
            if root is not None:
                clients[root_name] = root.with_options(max_retries=0)
                clients[name] = clients[root_name].chat.completions
        return clients

    def on_this_loop(self, chat: BaseChatModel) -> BaseChatModel:
        root = field(chat, "root_async_client")
        if root is None or field(chat, "http_async_client") is not None:
            return chat
        client = with_own_connections(root)
        update = {"root_async_client": client, "async_client": client.chat.completions}
        return chat.model_copy(update=update)

    def limited(
        self, chat: BaseChatModel, attempt: Attempt
    ) -> tuple[BaseChatModel, dict[str, Any]]:
        chat, kwargs = super().limited(chat, attempt)
        if "AzureChatOpenAI" in families(chat):
            # It does not rename the limit as ChatOpenAI does, and newer models refuse the old one.
            chat = chat.model_copy(update={"max_tokens": None})
            kwargs["max_completion_tokens"] = kwargs.pop("max_tokens")
        elif not is_openais(self.base_url(chat), attempt.model or str(field(chat, "model_name"))):
            # ChatOpenAI sends the newer name to everybody. `llama_cpp.server` 0.3.36 takes no
            # notice of it, and writes until its context is full.
            chat = _editing(chat, _with_old_limit)
        return chat, kwargs

    def flagged(self, chat: BaseChatModel, flag: Spelling) -> tuple[BaseChatModel, dict[str, Any]]:
        if flag == "continue_final_message":
            return chat, {"extra_body": {**(field(chat, "extra_body") or {}), **CONTINUE_FLAGS}}
        return _editing(chat, functools.partial(_marked, flag)), {}


class _Groq(_ByKeyword):
    """`max_retries=0` on a copy changes nothing here either, and nobody closes the streams."""

    flags = frozenset({"prefix", "partial", "continue_final_message"})
    marks = False

    def base_url(self, chat: BaseChatModel) -> str | None:
        root = field(field(chat, "client"), "_client")
        return str(root.base_url) if root is not None else None

    def without_retries(self, chat: BaseChatModel) -> dict[str, Any]:
        clients = {name: field(chat, name) for name in ("client", "async_client")}
        return {
            name: _Closing(client._client.with_options(max_retries=0).chat.completions)  # noqa: SLF001 - there is no public way
            for name, client in clients.items()
            if field(client, "_client") is not None
        }

    def on_this_loop(self, chat: BaseChatModel) -> BaseChatModel:
        root = field(field(chat, "async_client"), "_client")
        if root is None or field(chat, "http_async_client") is not None:
            return chat
        client = with_own_connections(root)
        return chat.model_copy(update={"async_client": _Closing(client.chat.completions)})

    def flagged(self, chat: BaseChatModel, flag: Spelling) -> tuple[BaseChatModel, dict[str, Any]]:
        if flag == "continue_final_message":
            return chat, {"extra_body": CONTINUE_FLAGS}
        return _editing(chat, functools.partial(_marked, flag)), {}


class _Anthropic(_ByKeyword):
    """Its clients are cached properties, and all models of one address share a pool."""

    flags = frozenset()

    def limited(
        self, chat: BaseChatModel, attempt: Attempt
    ) -> tuple[BaseChatModel, dict[str, Any]]:
        thinking = field(chat, "thinking") or {}
        if (thinking.get("budget_tokens") or 0) >= attempt.max_tokens:
            # Claude refuses a limit that its thinking could use up.
            chat = chat.model_copy(update={"thinking": None})
        return super().limited(chat, attempt)

    def on_this_loop(self, chat: BaseChatModel) -> BaseChatModel:
        own = chat.model_copy()
        shared = own._async_client  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way
        proxy = field(chat, "anthropic_proxy")
        own.__dict__["_async_client"] = with_own_connections(shared, proxy=proxy)
        return own


class _Mistral(_ByKeyword):
    """Its keywords are fields of the request's body."""

    flags = frozenset({"prefix", "partial", "continue_final_message"})
    timeout = False

    def on_this_loop(self, chat: BaseChatModel) -> BaseChatModel:
        if type(field(chat, "async_client")).__name__ != "AsyncClient":
            return chat  # the user's own
        own: Any = chat.model_copy(update={"async_client": None})
        return _rebuilt(own, "validate_environment")

    def flagged(self, chat: BaseChatModel, flag: Spelling) -> tuple[BaseChatModel, dict[str, Any]]:
        return chat, CONTINUE_FLAGS if flag == "continue_final_message" else {}


class _Ollama(Family):
    """The package has no retries. A keyword cannot set the limit."""

    most_requests = 1
    flags = frozenset()

    def base_url(self, chat: BaseChatModel) -> str | None:
        pool = field(field(chat, "_client"), "_client")
        return str(pool.base_url) if pool is not None else super().base_url(chat)

    def on_this_loop(self, chat: BaseChatModel) -> BaseChatModel:
        own = chat.model_copy(update={"validate_model_on_init": False})
        return _rebuilt(own, "_set_clients")


class _Gemini(Family):
    """The client is built by a validator; each call says how often it may be tried."""

    most_requests = 1
    flags = frozenset()

    def base_url(self, chat: BaseChatModel) -> str | None:
        options = field(field(field(chat, "client"), "_api_client"), "_http_options")
        url = field(options, "base_url")
        return str(url) if url else super().base_url(chat)

    def on_this_loop(self, chat: BaseChatModel) -> BaseChatModel:
        return _rebuilt(chat.model_copy(), "validate_environment")

    def limited(
        self, chat: BaseChatModel, attempt: Attempt
    ) -> tuple[BaseChatModel, dict[str, Any]]:
        kwargs: dict[str, Any] = {"max_output_tokens": attempt.max_tokens}
        if attempt.timeout_s is not None:
            kwargs["timeout"] = max(attempt.timeout_s, _GEMINI_LEAST_TIMEOUT_S)
        if attempt.model is not None:  # no keyword of its own
            chat = chat.model_copy(update={"model": attempt.model})
        return chat, kwargs


class _LiteLLM(_ByKeyword):
    """Below the class's own retries lie those of LiteLLM and of the SDKs it uses.

    What it makes up is taken out again: see `litellm.py`. On an event loop its own HTTP client,
    which some providers' models use, sends a request again if the connection is reset before the
    reply; nothing turns that off (litellm 1.106).
    """

    most_requests = 2
    flags = frozenset({"prefix", "partial", "continue_final_message"})
    marks = False
    more_fields = "model_kwargs"

    def without_retries(self, chat: BaseChatModel) -> dict[str, Any]:
        return {"client": OnlyReported(field(chat, "client"))}

    def limited(
        self, chat: BaseChatModel, attempt: Attempt
    ) -> tuple[BaseChatModel, dict[str, Any]]:
        chat, kwargs = super().limited(chat, attempt)
        return chat, {**kwargs, "max_retries": 0, "num_retries": 0}

    def flagged(self, chat: BaseChatModel, flag: Spelling) -> tuple[BaseChatModel, dict[str, Any]]:
        if flag == "continue_final_message":
            return chat, {"extra_body": CONTINUE_FLAGS}
        return _editing(chat, functools.partial(_marked, flag)), {}


_FAMILIES: dict[str, Family] = {
    "BaseChatOpenAI": _OpenAI(),
    "ChatAnthropic": _Anthropic(),
    "ChatGroq": _Groq(),
    "ChatMistralAI": _Mistral(),
    "ChatOllama": _Ollama(),
    "ChatGoogleGenerativeAI": _Gemini(),
    "ChatLiteLLM": _LiteLLM(),
}


def family_of(chat: BaseChatModel) -> Family:
    """The family of a chat model; a plain `Family` for who is in none."""
    known = families(chat)
    return next((family for name, family in _FAMILIES.items() if name in known), Family())


def copied_without_retries(chat: BaseChatModel) -> BaseChatModel:
    """A copy whose client sends each request once, for one reply, and asks for its usage."""
    fields = type(chat).model_fields
    update: dict[str, Any] = {}
    if "max_retries" in fields:
        update["max_retries"] = 0
    if "stream_usage" in fields and field(chat, "stream_usage") is not False:
        update["stream_usage"] = True
    update |= _for_one_reply(chat)
    update |= family_of(chat).without_retries(chat)
    if not update:
        return chat
    copy = chat.model_copy(update=update)
    for name in _cached_properties(type(copy)):
        # model_copy takes built clients along, with the retries they were built with.
        copy.__dict__.pop(name, None)
    return copy


def _for_one_reply(chat: BaseChatModel) -> dict[str, Any]:
    """Fields of a copy that asks for one reply, as long as the call says."""
    fields = type(chat).model_fields
    update: dict[str, Any] = {}
    if "n" in fields and field(chat, "n") not in {None, 1}:
        update["n"] = fields["n"].default
    for name in ("extra_body", "model_kwargs"):
        more = field(chat, name) if name in fields else None
        if more and not OF_THE_RELAY.isdisjoint(more):
            update[name] = {key: more[key] for key in more if key not in OF_THE_RELAY}
    return update


def _cached_properties(cls: type) -> list[str]:
    return [
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, functools.cached_property)
    ]


def _rebuilt(copy: BaseChatModel, validator: str) -> BaseChatModel:
    """The copy, after its class has built its clients once more; the original keeps its own."""
    getattr(copy, validator)()
    return copy


# --- streams that close -------------------------------------------------------------------------


class _Closing:
    """`chat.completions` of an SDK, whose streams end with whoever reads them.

    A stream of the groq package lies in a cycle: cut, it would stay open until the collector comes.
    """

    def __init__(self, completions: Any) -> None:
        self._completions = completions

    def create(self, **payload: Any) -> Any:
        made = self._completions.create(**payload)
        if not payload.get("stream"):
            return made
        return _aclosing(made) if isawaitable(made) else _closing(made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._completions, name)


def _closing(stream: Any) -> Iterator[Any]:
    with stream:
        yield from stream


async def _aclosing(opening: Awaitable[Any]) -> AsyncIterator[Any]:
    stream = await opening

    async def chunks() -> AsyncIterator[Any]:
        async with stream:
            async for chunk in stream:
                yield chunk

    return chunks()


# --- requests that are edited before they leave -------------------------------------------------

Edit = Callable[[dict[str, Any]], dict[str, Any]]


def _marked(key: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The request with a key on its last message."""
    *before, last = payload["messages"]
    return {**payload, "messages": [*before, {**last, key: True}]}


def _with_old_limit(payload: dict[str, Any]) -> dict[str, Any]:
    """The request with its limit under the name that servers of all makers know."""
    if "max_completion_tokens" not in payload:
        return payload
    rest = {name: value for name, value in payload.items() if name != "max_completion_tokens"}
    return {**rest, "max_tokens": payload["max_completion_tokens"]}


def _editing(chat: BaseChatModel, edit: Edit) -> BaseChatModel:
    """The model with clients that edit the request: the class drops keys it does not know."""
    clients = {name: field(chat, name) for name in ("client", "async_client")}
    return chat.model_copy(
        update={name: _Editing(client, edit) for name, client in clients.items() if client}
    )


class _Editing:
    """A client that edits each request: `chat.completions` of an SDK, or LiteLLM itself."""

    def __init__(self, client: Any, edit: Edit) -> None:
        self._client = client
        self._edit = edit

    def create(self, **payload: Any) -> Any:
        return self._client.create(**self._edit(payload))

    def completion(self, **payload: Any) -> Any:
        return self._client.completion(**self._edit(payload))

    def acompletion(self, **payload: Any) -> Any:
        return self._client.acompletion(**self._edit(payload))

    @property
    def with_raw_response(self) -> _Editing:
        return _Editing(self._client.with_raw_response, self._edit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
