"""Text that comes token by token: whole characters, and strings that must not be begun.

Pure functions; nothing here knows a vocabulary or a model.
"""

from __future__ import annotations

import codecs
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_new_decoder = codecs.getincrementaldecoder("utf-8")


def whole_chars(held: bytes, piece: bytes) -> tuple[str, bytes]:
    """The characters complete after `held + piece`, and the bytes of one that is not.

    Bytes that can never become a character come out as U+FFFD.
    """
    if not held:
        try:
            return piece.decode(), b""
        except UnicodeDecodeError:
            pass  # begins, ends or lies within a character
    decoder = _new_decoder(errors="replace")
    text = decoder.decode(held + piece)
    return text, decoder.getstate()[0]


@lru_cache(maxsize=64)
def forbidden(ban: tuple[str, ...]) -> tuple[str, ...]:
    """The strings whose appearance means that a string of `ban` is begun.

    `"<call>"` is begun by `"<call"`: its last character merges with what follows in many
    vocabularies, so it is too late to wait for it. A shorter prefix would forbid ordinary text.
    """
    return tuple(dict.fromkeys(part for text in ban for part in (text[:-1], text) if part))


def begins(tail: str, new: str, parts: Iterable[str]) -> bool:
    """Whether appending `new` to `tail` brings about one of `parts`.

    A part that lies wholly within `tail` was there before and is nobody's fault now.
    """
    for part in parts:
        before = tail[-(len(part) - 1) :] if len(part) > 1 else ""
        if part in before + new:
            return True
    return False
