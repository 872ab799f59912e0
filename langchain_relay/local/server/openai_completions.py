"""The OpenAI completions protocol, `/v1/completions`, as inference servers extend it.

`llama_cpp.server` is tested. vLLM and SGLang are written from their documentation and have not been
run: their differences stand in `FLAVOURS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_relay.errors import LocalModelError, UsageMistake
from langchain_relay.local.server.dialect import (
    Asked,
    Cached,
    Ended,
    Facts,
    Item,
    Reader,
    ServerSettings,
    Written,
    whole_at_the_end,
)
from langchain_relay.local.server.prompt import Breaker, parts
from langchain_relay.local.server.transport import NoSuchPage
from langchain_relay.local.template import ChatTemplate

if TYPE_CHECKING:
    from langchain_relay.engine.values import Rule, Turn
    from langchain_relay.local.server.transport import Http

BAN_BIAS = -100.0
"""What the protocol allows at most; added to a logit it leaves no chance."""

CHUNK_TOKENS = 512
"""Tokens of one request: where a connection breaks unnoticed, no more is written for nobody."""

SLACK_TOKENS = 16
"""A server tokenizes text anew and may count a little more than we do; near the end of the
context one token is asked for at a time."""


@dataclass(frozen=True, slots=True)
class Flavour:
    """How one server departs from the others of this protocol.

    Attributes:
        stop_fields: Fields that make it include the stop string and name it; empty if it cannot.
        stop_named_in: The choice's field that names the stop string it met.
        sampling: Field names of the settings the protocol does not know.
        off: What switches `top_k` off.
        tokenize: Path of the tokenizer.
        tokenize_text: Field name of the text in its request.
        tokenize_fields: What else goes into its request.
        adapter: The fields that choose an adapter, from its name.
        usage: It tells what it had in its cache, in an event behind the last one, where asked to.
    """

    stop_fields: Mapping[str, Any] = field(default_factory=dict)
    stop_named_in: str = ""
    repeat_penalty: str = "repeat_penalty"
    top_k_off: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    tokenize: str = "/extras/tokenize"
    tokenize_text: str = "input"
    tokenize_fields: Mapping[str, Any] = field(default_factory=dict)
    adapter: Callable[[str], Mapping[str, Any]] | None = None
    usage: bool = False


FLAVOURS: Mapping[str, Flavour] = {
    "llama_cpp.server": Flavour(extra={"mirostat_mode": 0}),
    # Not run. docs.vllm.ai, "OpenAI-Compatible Server": extra parameters of the completions API.
    "vllm": Flavour(
        stop_fields={"include_stop_str_in_output": True},
        stop_named_in="stop_reason",
        repeat_penalty="repetition_penalty",
        top_k_off=-1,
        extra={"return_token_ids": True, "add_special_tokens": False},
        tokenize="/tokenize",
        tokenize_text="prompt",
        tokenize_fields={"add_special_tokens": False},
        adapter=lambda name: {"model": name},
        usage=True,
    ),
    # Not run. docs.sglang.ai, "OpenAI-compatible APIs" and "Sampling parameters".
    "sglang": Flavour(
        stop_fields={"no_stop_trim": True},
        stop_named_in="matched_stop",
        repeat_penalty="repetition_penalty",
        top_k_off=-1,
        tokenize="/tokenize",
        tokenize_text="prompt",
        adapter=lambda name: {"lora_path": name},
        usage=True,
    ),
}

_OWNERS = {"vllm": "vllm", "sglang": "sglang", "me": "llama_cpp.server"}


class OpenAICompletions:
    """Speaks the OpenAI completions protocol; the context is kept as text."""

    path = "/v1/completions"
    tells_stop = False

    def __init__(self, http: Http, settings: ServerSettings) -> None:
        self._http = http
        self._settings = settings
        self._flavour = FLAVOURS.get(settings.server or "", Flavour())
        self._model = settings.model
        self._begun: list[int] = []

    async def connect(self) -> Facts:
        """See `Dialect.connect`.

        Raises:
            UsageMistake: the template, the context's size or the adapter cannot be known, or the
                server has no model of the name asked for.
            LocalModelError: there is no such server.
        """
        listed = await self._listed()
        if self._settings.server is None:
            owner = _OWNERS.get(str(listed.get("owned_by")))
            self._flavour = FLAVOURS.get(owner or "", self._flavour)
        self.tells_stop = bool(self._flavour.stop_named_in)
        self._model = self._settings.model or listed.get("id")
        if self._settings.adapter is not None and self._flavour.adapter is None:
            raise UsageMistake(
                f"the server at {self._http.base_url} cannot choose an adapter by name; start it "
                f"with the adapter, or use llama.cpp's server, vLLM or SGLang"
            )
        self._template = self._own_template()
        tokenizer = self._settings.tokenizer
        self._breaker = Breaker(self._template, tokenizer.control_texts if tokenizer else ())
        self._begun = await self._tokenize("")
        return Facts(self._context(listed), None, self._template.thinking)

    async def prompt(self, turns: Sequence[Turn], *, open_assistant: bool) -> list[Item]:
        """See `Dialect.prompt`."""
        controls = [text for turn in turns for text in self._breaker.found(turn.content)]
        rendered = "".join(
            self._breaker.broken(part.text) if part.plain else part.text
            for part in parts(self._template, turns, controls, open_assistant=open_assistant)
        )
        # A server puts its own token in front.
        rendered = rendered.removeprefix(self._template.bos) if self._begun else rendered
        return [Item(rendered, (), len(await self._tokenize(rendered)))]

    async def foreign(self, text: str) -> Item:
        """See `Dialect.foreign`."""
        return Item(self._breaker.broken(text), (), await self.count(text))

    async def count(self, text: str) -> int:
        """See `Dialect.count`."""
        return len(await self.ids(text))

    async def ids(self, text: str) -> list[int]:
        """See `Dialect.ids`."""
        ids = await self._tokenize(self._breaker.broken(text))
        return ids[len(self._begun) :] if ids[: len(self._begun)] == self._begun else ids

    async def texts(self, ids: Sequence[int], text: str) -> list[str]:
        """See `Dialect.texts`."""
        return whole_at_the_end(ids, text)

    def item(self, id: int, text: str | None) -> Item:
        """See `Dialect.item`.

        Raises:
            UsageMistake: this session never gave that id.
        """
        if text is None:
            raise UsageMistake(
                f"token {id} is unknown: ids of a server that takes text are each session's own"
            )
        return Item(text, (), 1, local=True)

    def check(self, rule: Rule) -> None:
        """See `Dialect.check`."""
        if rule.signals:
            raise UsageMistake(
                f"the OpenAI completions protocol does not give {sorted(rule.signals)} exactly; "
                f"use LlamaCppModel, or llama.cpp's own server for the margin"
            )
        if rule.grammar is not None:
            raise UsageMistake(
                "the OpenAI completions protocol has no grammar; use llama.cpp's own server"
            )

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Dialect.body`."""
        chosen, flavour = asked.chosen, self._flavour
        body: dict[str, Any] = {
            **self._settings.extra_body,
            "model": self._model,
            "prompt": self._text(asked.prefix),
            "max_tokens": max(1, min(CHUNK_TOKENS, asked.limit - SLACK_TOKENS)),
            "stream": True,
            "temperature": chosen.temperature,
            "top_k": chosen.top_k or flavour.top_k_off,
            "top_p": chosen.top_p,
            "min_p": chosen.min_p,
            flavour.repeat_penalty: chosen.repeat_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": asked.seed,
            **flavour.extra,
        }
        if asked.limit == 1:
            body["max_tokens"] = 1
        if flavour.usage:
            body["stream_options"] = {"include_usage": True}
        if asked.stop:
            body |= {"stop": list(asked.stop), **flavour.stop_fields}
        if asked.banned:
            body["logit_bias"] = {str(token): BAN_BIAS for token in asked.banned}
        if self._settings.adapter is not None and flavour.adapter is not None:
            body |= flavour.adapter(self._settings.adapter)
        return body

    def reader(self) -> Reader:
        """See `Dialect.reader`."""
        return _Reader(self._flavour)

    def _text(self, prefix: Sequence[Item]) -> str:
        """The context as text; what stands behind the prompt may spell control text together."""
        prompt, *rest = (item.text for item in prefix)
        return prompt + self._breaker.broken("".join(rest))

    async def _listed(self) -> dict[str, Any]:
        """What the server says of its model."""
        name = self._settings.model
        try:
            models: list[dict[str, Any]] = (await self._http.json("/v1/models"))["data"]
        except NoSuchPage as error:
            if self._settings.protocol == "auto":  # nobody said that it is one of this protocol
                raise LocalModelError(
                    f"no inference server was found at {self._http.base_url}: it knows neither "
                    f"/props (llama.cpp) nor /v1/models (OpenAI); look at base_url, or give "
                    f'protocol="openai"'
                ) from error
            return {}
        named = [model for model in models if name in {None, model.get("id")}]
        if models and not named:
            raise UsageMistake(
                f"the server at {self._http.base_url} has no model {name!r}, but "
                f"{[model.get('id') for model in models]}"
            )
        return (named or [{}])[0]

    def _own_template(self) -> ChatTemplate:
        if self._settings.template is not None:
            return ChatTemplate(self._settings.template)
        if self._settings.tokenizer is not None:
            known: ChatTemplate = self._settings.tokenizer.template
            return known
        raise UsageMistake(
            "a server of the OpenAI completions protocol does not tell its chat template: give "
            "template= (Jinja text), or tokenizer= (a GGUF that has it)"
        )

    def _context(self, listed: dict[str, Any]) -> int:
        n_ctx = self._settings.n_ctx or listed.get("max_model_len")
        if n_ctx is None:
            raise UsageMistake(
                f"the server at {self._http.base_url} does not tell the size of its context: "
                f"give n_ctx="
            )
        return int(n_ctx)

    async def _tokenize(self, text: str) -> list[int]:
        """Ids of `text` as the server makes them, with what it puts in front."""
        if self._settings.tokenizer is not None:
            known: list[int] = self._settings.tokenizer.tokenize(text)
            return known
        flavour = self._flavour
        body = {"model": self._model, flavour.tokenize_text: text, **flavour.tokenize_fields}
        ids: list[int] = (await self._http.json(flavour.tokenize, body))["tokens"]
        return ids


class _Reader:
    """Reads the events of one request; each is one token, unless it tells how many it is."""

    def __init__(self, flavour: Flavour) -> None:
        self._flavour = flavour
        self._end: Ended | None = None

    def read(self, event: Any) -> Iterator[Written | Ended | Cached]:
        """See `Reader.read`."""
        details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
        if isinstance(details.get("cached_tokens"), int):
            yield Cached(details["cached_tokens"])
        for choice in event.get("choices", []):
            if choice.get("text"):
                yield Written(choice["text"], None, max(1, len(choice.get("token_ids") or [])))
            if choice.get("finish_reason") is not None:
                self._end = self._ended(choice)
        if event.get("usage") or not self._flavour.usage:
            yield from self.end()

    def end(self) -> Iterator[Ended]:
        """See `Reader.end`."""
        end, self._end = self._end, None
        if end is not None:
            yield end

    def _ended(self, choice: dict[str, Any]) -> Ended:
        match choice["finish_reason"]:
            case "length":
                return Ended("more")
            case "stop":
                # A number is a token that ends the turn; a text is one of our stop strings.
                met = choice.get(self._flavour.stop_named_in)
                return Ended("more" if isinstance(met, str) else "eog")
            case other:
                raise LocalModelError(f"the server ended its text for a reason unknown: {other!r}")
