"""llama.cpp's own server: `/completion` with token ids, slots and its prompt cache.

Field names and events are those of tools/server in llama.cpp (build 11434 was read and tested).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from langchain_relay.errors import LocalModelError, UsageMistake
from langchain_relay.local.sampling import PENALTY_LAST_TOKENS
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
from langchain_relay.local.server.prompt import SUSPICIOUS, parts
from langchain_relay.local.server.transport import NoSuchPage
from langchain_relay.local.template import ChatTemplate

if TYPE_CHECKING:
    from langchain_relay.engine.values import Rule, Turn
    from langchain_relay.local.server.transport import Http

SIGNALS = frozenset({"margin"})
"""What top probabilities give exactly; entropy would need those of the whole vocabulary."""

REMEMBERED_TEXTS = 4096


class LlamaServer:
    """Speaks to llama.cpp's server; the context is kept as token ids."""

    path = "/completion"
    tells_stop = True

    def __init__(self, http: Http, settings: ServerSettings) -> None:
        self._http = http
        self._settings = settings
        self._lora: list[dict[str, Any]] = []
        self._bos: list[int] = []
        self._newline: list[int] = []
        self._controls: dict[str, tuple[str, ...]] = {}
        self._pieces: dict[int, str] = {}

    async def connect(self) -> Facts:
        """See `Dialect.connect`.

        Raises:
            UsageMistake: the server has no adapter of the name asked for, or does not tell its
                context.
        """
        props = await self._http.json("/props")
        self._template = ChatTemplate(
            self._settings.template or props.get("chat_template"),
            bos=props.get("bos_token", ""),
            eos=props.get("eos_token", ""),
        )
        await self._learn_vocabulary()
        if self._settings.adapter is not None:
            self._lora = [{"id": await self._adapter_id(self._settings.adapter), "scale": 1.0}]
        return Facts(self._context(props), props.get("total_slots"), self._template.thinking)

    async def prompt(self, turns: Sequence[Turn], *, open_assistant: bool) -> list[Item]:
        """See `Dialect.prompt`."""
        controls = [text for turn in turns for text in await self._controls_in(turn.content)]
        ids: list[int] = []
        listed = parts(self._template, turns, controls, open_assistant=open_assistant)
        for i, part in enumerate(listed):
            ids += await self._tokenize(part.text, special=not part.plain, first=i == 0)
        if self._bos and ids[:1] != self._bos:
            ids = [*self._bos, *ids]
        return [Item("", tuple(ids), len(ids))]

    async def foreign(self, text: str) -> Item:
        """See `Dialect.foreign`."""
        ids = await self.ids(text)
        return Item(text, tuple(ids), len(ids))

    async def count(self, text: str) -> int:
        """See `Dialect.count`."""
        return len(await self.ids(text))

    async def ids(self, text: str) -> list[int]:
        """See `Dialect.ids`."""
        return await self._tokenize(text, special=False, first=False)

    async def texts(self, ids: Sequence[int], text: str) -> list[str]:
        """See `Dialect.texts`."""
        texts = [await self._piece(token) for token in ids]
        # Tokens of one character have no text of their own.
        return texts if "".join(texts) == text else whole_at_the_end(ids, text)

    def item(self, id: int, text: str | None) -> Item:
        """See `Dialect.item`."""
        return Item(text or "", (id,), 1, local=True)

    def check(self, rule: Rule) -> None:
        """See `Dialect.check`."""
        if unknown := rule.signals - SIGNALS:
            raise UsageMistake(
                f"llama.cpp's server does not give {sorted(unknown)}: it sends the likeliest "
                f"tokens' probabilities only, which give {sorted(SIGNALS)}; use LlamaCppModel"
            )

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Dialect.body`."""
        chosen = asked.chosen
        body: dict[str, Any] = {
            **self._settings.extra_body,
            "prompt": [token for item in asked.prefix for token in item.ids],
            "n_predict": asked.limit,
            "stream": True,
            "cache_prompt": True,
            "return_tokens": True,
            "timings_per_token": False,
            "stop": list(asked.stop),
            # A server may be started with other samplers (dry, xtc, …) and other values.
            "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
            "temperature": chosen.temperature,
            "top_k": chosen.top_k,
            "top_p": chosen.top_p,
            "min_p": chosen.min_p,
            "repeat_penalty": chosen.repeat_penalty,
            "repeat_last_n": PENALTY_LAST_TOKENS,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "dynatemp_range": 0.0,
            "mirostat": 0,
            "seed": asked.seed,
            "n_probs": 2 if asked.rule.signals else 0,
            "post_sampling_probs": False,
            "logit_bias": [[token, False] for token in asked.banned],
        }
        if asked.slot is not None:
            body["id_slot"] = asked.slot
        if asked.rule.grammar is not None:
            body["grammar"] = asked.rule.grammar
        if self._lora:
            body["lora"] = self._lora
        return body

    def reader(self) -> Reader:
        """See `Dialect.reader`."""
        return _Reader()

    async def _learn_vocabulary(self) -> None:
        """What the vocabulary puts in front of a text: a token of its own, a blank, or nothing."""
        tokenize = self._raw_tokenize
        newline, plain = await tokenize("\n", special=False), await tokenize("a", special=False)
        after = await tokenize("\na", special=False)
        # A vocabulary that puts a blank before every text does so before the newline only.
        self._newline = newline if after[len(newline) :] != plain else []
        begun = await tokenize("a", special=False, add_special=True)
        self._bos = begun[: len(begun) - len(plain)] if begun[-len(plain) :] == plain else []

    async def _piece(self, token: int) -> str:
        if token not in self._pieces:
            answer = await self._http.json("/detokenize", {"tokens": [token]})
            self._pieces[token] = answer["content"]
        return self._pieces[token]

    def _context(self, props: dict[str, Any]) -> int:
        n_ctx = self._settings.n_ctx or props.get("default_generation_settings", {}).get("n_ctx")
        if n_ctx is None:
            raise UsageMistake(
                f"{self._http.base_url}/props does not tell the size of a chat's context: give "
                f"n_ctx=, or look whether llama.cpp's server runs there"
            )
        return int(n_ctx)

    async def _adapter_id(self, name: str) -> int:
        try:
            adapters = await self._http.json("/lora-adapters")
        except NoSuchPage:
            adapters = []
        for adapter in adapters:
            path = PurePath(str(adapter.get("path", "")))
            if name in {str(path), path.name, path.stem}:
                return int(adapter["id"])
        known = [adapter.get("path") for adapter in adapters]
        raise UsageMistake(
            f"the server at {self._http.base_url} has no adapter {name!r}, but {known}; start it "
            f"with --lora"
        )

    async def _controls_in(self, content: str) -> tuple[str, ...]:
        """The control texts within a message, as the server's own vocabulary has them."""
        if not SUSPICIOUS.search(content):
            return ()
        if content not in self._controls:
            plain = set(await self._raw_tokenize(content, special=False))
            body = {"content": content, "parse_special": True, "with_pieces": True}
            special = (await self._http.json("/tokenize", body))["tokens"]
            pieces = [token["piece"] for token in special if token["id"] not in plain]
            found = [piece for piece in pieces if isinstance(piece, str) and piece in content]
            if len(self._controls) >= REMEMBERED_TEXTS:
                self._controls.clear()
            # Tokens of text around a control token may differ too; what is control alone counts.
            self._controls[content] = tuple([p for p in set(found) if await self._is_control(p)])
        return self._controls[content]

    async def _is_control(self, text: str) -> bool:
        return await self._raw_tokenize(text, special=True) != await self._raw_tokenize(
            text, special=False
        )

    async def _tokenize(self, text: str, *, special: bool, first: bool) -> list[int]:
        if not text:
            return []
        if first or not self._newline:
            return await self._raw_tokenize(text, special=special)
        ids = await self._raw_tokenize("\n" + text, special=special)
        return ids[len(self._newline) :]

    async def _raw_tokenize(
        self, text: str, *, special: bool, add_special: bool = False
    ) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": special}
        ids: list[int] = (await self._http.json("/tokenize", body))["tokens"]
        return ids


class _Reader:
    """Gathers the events of tokens whose text the server withholds.

    It withholds what may become a stop string, and sends the tokens meanwhile without text. The
    tokens of an incomplete character it does not send at all, which shows in its running count.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._signals: list[dict[str, float]] = []
        self._predicted = 0
        self._lost = 0
        self._ready: Written | None = None

    def read(self, event: Any) -> Iterator[Written | Ended | Cached]:
        """See `Reader.read`."""
        if "content" not in event:
            return
        if event.get("stop"):
            yield from self._end(event)
            return
        yield from self._take_ready()
        self._note(event)
        if event["content"]:
            yield from self._written(event["content"])

    def end(self) -> Iterator[Ended]:
        """See `Reader.end`; its last event says all."""
        yield from ()

    def _note(self, event: Any) -> None:
        self._ids += event.get("tokens", [])
        self._signals += map(_margin, event.get("completion_probabilities", []))
        predicted = event.get("tokens_predicted", self._predicted + 1)
        self._lost += predicted - self._predicted - 1
        self._predicted = predicted

    def _written(self, text: str) -> Iterator[Written]:
        ids, tokens = tuple(self._ids), len(self._ids) + self._lost
        known = ids if not self._lost else None
        self._ready = Written(text, known, tokens, tuple(self._signals))
        self._ids, self._signals, self._lost = [], [], 0
        # The last of several tokens may turn out to be the end of the turn.
        if tokens == 1:
            yield from self._take_ready()

    def _take_ready(self) -> Iterator[Written]:
        if self._ready is not None:
            ready, self._ready = self._ready, None
            yield ready

    def _end(self, event: Any) -> Iterator[Written | Ended | Cached]:
        yield from _cached(event)
        match event.get("stop_type"):
            case "eos":
                yield from self._ended_turn()
            case "word":
                yield from self._take_ready()
                yield from self._written(event["stopping_word"])
                yield from self._take_ready()
                yield Ended("more")
            case "limit":
                yield from self._take_ready()
                yield Ended("more")
            case other:
                raise LocalModelError(f"llama.cpp's server stopped for a reason unknown: {other!r}")

    def _ended_turn(self) -> Iterator[Written | Ended]:
        if self._ready is None:
            yield Ended("eog", self._ids[-1] if self._ids else -1)
            return
        # Text that was withheld came with the token that ends the turn.
        ready, self._ready = self._ready, None
        ids = ready.ids or (-1,)
        yield Written(ready.text, ready.ids and ids[:-1], ready.tokens - 1, ready.signals[:-1])
        yield Ended("eog", ids[-1])


def _margin(probability: Any) -> dict[str, float]:
    """How far the likeliest token is ahead of the second, before temperature and filters."""
    top = [math.exp(token["logprob"]) for token in probability["top_logprobs"]]
    return {"margin": top[0] - (top[1] if len(top) > 1 else 0.0)}


def _cached(event: Any) -> Iterator[Cached]:
    cached = event.get("timings", {}).get("cache_n")
    if isinstance(cached, int):
        yield Cached(cached)
