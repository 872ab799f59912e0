"""What hosts keep of prompts, by the rules they document; an emulation, in words for tokens.

OpenAI up to GPT-5.5: the longest beginning shared with an earlier prompt, from 1,024 tokens on, in
steps of 128. GPT-5.6 and later: whole beginnings up to a breakpoint, one of its own behind the
last message unless told otherwise. Anthropic: beginnings up to a marked block, found again from
each mark over the last 20 blocks. Nothing expires, and nothing is ever evicted.
Read 2026-11-21: developers.openai.com/api/docs/guides/prompt-caching,
platform.claude.com/docs/en/build-with-claude/prompt-caching.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OPENAI_LEAST, OPENAI_STEP = 1_024, 128
OPENAI_READS, OPENAI_WRITES = 50, 4
LOOKBACK_BLOCKS = 20

_EXPLICIT = re.compile(r"^gpt-(5\.([6-9]|\d\d)|[6-9])")
_CLAUDE_LEAST = {r"opus-5|fable-5|mythos-5": 512, r"haiku-4-5|opus-4-[56]": 4_096, r"haiku": 2_048}


@dataclass(frozen=True)
class Counted:
    """Input tokens of one request; cached and written ones are part of them."""

    input: int
    cached: int = 0
    written: int = 0


@dataclass(frozen=True)
class _Block:
    """Where a block ends, in tokens, and whether it is marked."""

    end: int
    marked: bool


@dataclass
class PromptCaches:
    """The caches of all hosts one server plays; each model has its own."""

    _prompts: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    _kept: dict[str, set[int]] = field(default_factory=dict)

    def count(self, dialect: str, body: Mapping[str, Any]) -> Counted:
        """Count a request, and keep what the host would keep."""
        tokens, blocks = _read(body)
        model = str(body.get("model", ""))
        if dialect == "anthropic_messages":
            return self._anthropic(model, tokens, blocks)
        if not dialect.startswith("openai"):
            return Counted(len(tokens))
        if _EXPLICIT.match(model):
            return self._explicit(model, tokens, blocks, body)
        return self._automatic(model, tokens)

    def _automatic(self, model: str, tokens: tuple[str, ...]) -> Counted:
        kept = self._prompts.setdefault(model, [])
        shared = max((_shared(tokens, prompt) for prompt in kept), default=0)
        kept.append(tokens)
        found = shared // OPENAI_STEP * OPENAI_STEP
        return Counted(len(tokens), found if found >= OPENAI_LEAST else 0)

    def _explicit(
        self,
        model: str,
        tokens: tuple[str, ...],
        blocks: Sequence[_Block],
        body: Mapping[str, Any],
    ) -> Counted:
        ends = [block.end for block in blocks if block.marked]
        if (body.get("prompt_cache_options") or {}).get("mode") != "explicit":
            ends.append(len(tokens))
        read, written = ends[-OPENAI_READS:], ends[-OPENAI_WRITES:]
        return self._by_breakpoints(model, tokens, read, written, OPENAI_LEAST)

    def _anthropic(self, model: str, tokens: tuple[str, ...], blocks: Sequence[_Block]) -> Counted:
        found = (least for name, least in _CLAUDE_LEAST.items() if re.search(name, model))
        marks = [number for number, block in enumerate(blocks) if block.marked]
        assert len(marks) <= 4, "Anthropic answers 400: more than 4 breakpoints"
        read = {
            blocks[at].end
            for mark in marks
            for at in range(max(0, mark - LOOKBACK_BLOCKS + 1), mark + 1)
        }
        written = [blocks[mark].end for mark in marks]
        return self._by_breakpoints(model, tokens, sorted(read), written, next(found, 1_024))

    def _by_breakpoints(
        self,
        model: str,
        tokens: tuple[str, ...],
        read: Sequence[int],
        written: Sequence[int],
        least: int,
    ) -> Counted:
        kept = self._kept.setdefault(model, set())
        cached = max((end for end in read if hash(tokens[:end]) in kept), default=0)
        new = [end for end in written if end >= least]
        kept |= {hash(tokens[:end]) for end in new}
        return Counted(len(tokens), cached, max(0, max(new, default=0) - cached))


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((at for at, (x, y) in pairs if x != y), min(len(a), len(b)))


def _read(body: Mapping[str, Any]) -> tuple[tuple[str, ...], list[_Block]]:
    """The prompt as tokens, and its blocks. Tools stand first, then the system prompt."""
    tokens: list[str] = []
    blocks: list[_Block] = []
    for role, content in _parts(body):
        before, text = len(tokens), ""
        for block in [content] if isinstance(content, str) else content or []:
            text += block if isinstance(block, str) else str(block.get("text", block))
            marked = isinstance(block, dict) and bool(
                block.keys() & {"cache_control", "prompt_cache_breakpoint"}
            )
            blocks.append(_Block(before + len(text.split()), marked))
        # Who speaks is part of the first word: the same words of another are another beginning.
        tokens += [f"{role}:{word}" if not at else word for at, word in enumerate(text.split())]
    return tuple(tokens), blocks


def _parts(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if tools := body.get("tools"):
        yield "tools", json.dumps(tools)
    if system := body.get("system"):
        yield "system", system
    if isinstance(prompt := body.get("prompt"), str):
        yield "prompt", prompt
    for message in body.get("messages") or ():
        yield message["role"], message.get("content")
