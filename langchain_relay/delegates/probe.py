"""What a host does with a begun answer, found out by asking it once; it costs one small request.

The model is asked to write a given sentence, and its answer is begun with a variant of it that
ends within a word. Who continues completes the word (`literal`); who repeats the begun answer
writes the variant (`echo`); who starts the answer again writes the sentence as given (`restart`);
who takes no begun answer answers 4xx (`reject`). The verdict is kept on disk and decides the mode
of delegates made later; it is never asked for unasked.

Source: the classes of "prefill" support in the providers' own pages, see `hosts.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import queue
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import aclosing, closing
from copy import copy
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from langchain_relay.delegates.bounds import MAX_BYTES_PER_TOKEN
from langchain_relay.delegates.continuation import LITERAL_MODES
from langchain_relay.delegates.failures import http_status
from langchain_relay.delegates.pump import Pump
from langchain_relay.errors import DelegateError, DelegateTimeout
from langchain_relay.offline import refuse_offline

if TYPE_CHECKING:
    from langchain_relay.engine.values import Attempt, Delegate, Mode

__all__ = ["Probed", "Probing", "Verdict", "classified", "kept", "remembered"]

Verdict = Literal["literal", "echo", "restart", "reject"]
"""What a host does with a begun answer."""

SENTENCE = "The small brown fox jumps over the sleepy dog beside the quiet river."
BEGUN = "The small green fox ju"
QUESTION = f"Write exactly this sentence and nothing else: {SENTENCE}"
MAX_TOKENS = 24
TIMEOUT_S = 30.0
"""For the whole probe: clients begin their own timeouts anew with every byte, or have none."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe found.

    Attributes:
        verdict: What the host does.
        mode: How the begun answer was shown to it.
        model: The model that was asked.
        base_url: Where; `None` if the delegate does not say.
        reply: What it wrote, or its refusal.
        day: When, in UTC.
        package: The version of this package.
    """

    verdict: Verdict
    mode: Mode
    model: str
    base_url: str | None
    reply: str
    day: str
    package: str


def classified(reply: str) -> Verdict:
    """What a reply to the probe means.

    Raises:
        DelegateError: it is empty, which says nothing.
    """
    text = reply.strip().casefold()
    if not text:
        raise DelegateError("the probe got an empty reply, which says nothing; probe again")
    variant, half_word = BEGUN.rsplit(" ", 1)
    if text.startswith(variant.casefold()):
        return "echo"
    word = next(word for word in SENTENCE.split() if word.startswith(half_word))
    return "literal" if _completes(word, half_word, reply.lstrip()) else "restart"


def _completes(word: str, half_word: str, reply: str) -> bool:
    """Whether a reply goes on within the half word and then with the sentence.

    A small model may make another word of it (SmolLM2-135M makes "juggles"). What a reply begins
    with must be no word of the sentence: "jumps over" begins the word again.
    """
    if reply.casefold().startswith(word.removeprefix(half_word)):
        return True
    first, _, rest = reply.partition(" ")
    goes_on = SENTENCE.partition(word)[2].split()[:2]
    return first.isalpha() and first.islower() and rest.split()[:2] == goes_on and first != word


class Probing(ABC):
    """What delegates of hosts have in common: they can find out how a host continues.

    `_mode` and `_echoes` are a delegate's own; a mode that nobody chose is that of the last probe.
    """

    _mode: Mode
    _echoes: bool

    @property
    @abstractmethod
    def fingerprint(self) -> Mapping[str, Any]:
        """See `Delegate.fingerprint`."""

    def probe(self) -> Probed:
        """Ask the host once whether it continues a begun answer; the verdict is kept on disk.

        Costs one request of some 60 tokens and takes at most 30 s. A delegate that is made later,
        without a `mode`, takes the mode that the verdict allows. Where the disk takes no verdict, a
        warning says so.

        Raises:
            DelegateError: the host failed otherwise than by refusing, or wrote nothing.
            DelegateTimeout: it was not through within 30 s.
            Offline: `LANGCHAIN_RELAY_OFFLINE` is set, and the host is not on this machine.
        """
        asked: Any = self._literal()
        refuse_offline(f"a probe of {asked.model}", asked.base_url)
        try:
            reply = _reply(asked)
        except DelegateError as error:
            return _kept(asked, _refused(error), str(error))
        return _kept(asked, classified(reply), reply)

    async def aprobe(self) -> Probed:
        """Async twin of `probe`."""
        asked: Any = self._literal()
        refuse_offline(f"a probe of {asked.model}", asked.base_url)
        try:
            reply = await _areply(asked)
        except DelegateError as error:
            return _kept(asked, _refused(error), str(error))
        return _kept(asked, classified(reply), reply)

    def _literal(self) -> Self:
        """The same delegate in a literal mode, its replies untouched."""
        literal = copy(self)
        literal._mode = self._mode if self._mode in LITERAL_MODES else "prefill"  # noqa: SLF001 - its own copy
        literal._echoes = False  # noqa: SLF001 - as above
        return literal

    def _take_verdict(self, chosen: Mode | None) -> None:
        """Do as the last probe allows, if there was one; a mode that somebody chose is kept."""
        asked = self._literal()
        probed = remembered(asked.fingerprint)
        if probed is None or probed.mode != asked._mode:  # noqa: SLF001 - its own copy
            return
        if chosen is None:
            self._mode = probed.mode if probed.verdict in {"literal", "echo"} else "instruct"
        if self._mode == probed.mode:
            self._echoes = probed.verdict == "echo"


def _attempt() -> Attempt:
    from langchain_core.messages import HumanMessage

    from langchain_relay.engine.values import Attempt

    return Attempt((HumanMessage(QUESTION),), BEGUN, MAX_TOKENS, timeout_s=TIMEOUT_S)


def _reply(delegate: Delegate) -> str:
    """What the host writes, up to what it may write at most.

    Raises:
        DelegateError: it failed, or was not through in time.
    """
    text, ends_at = "", time.monotonic() + TIMEOUT_S
    with closing(Pump(lambda: delegate.stream(_attempt()))) as pump:
        while len(text) <= _MOST_CHARS:
            try:
                delta = pump.next(ends_at - time.monotonic())
            except queue.Empty:
                raise _too_slow(delegate) from None
            if delta is None:
                break
            text += delta.text
    return text


async def _areply(delegate: Delegate) -> str:
    """Async twin of `_reply`."""
    text, timeout = "", asyncio.timeout(TIMEOUT_S)
    try:
        async with timeout, aclosing(delegate.astream(_attempt())) as deltas:  # type: ignore[type-var]  # every `astream` is a generator
            async for delta in deltas:
                text += delta.text
                if len(text) > _MOST_CHARS:
                    break
    except TimeoutError:
        raise _too_slow(delegate) from None
    return text


_MOST_CHARS = MAX_TOKENS * MAX_BYTES_PER_TOKEN


def _too_slow(delegate: Delegate) -> DelegateTimeout:
    return DelegateTimeout(f"{delegate.model}: the probe got no whole reply within {TIMEOUT_S:g} s")


def _refused(error: DelegateError) -> Verdict:
    """A refusal of the request itself is a verdict; a failure on the way is not."""
    cause = error.__cause__
    if isinstance(cause, Exception) and http_status(cause) in {400, 422}:
        return "reject"
    raise error


# --- kept on disk -------------------------------------------------------------------------------


def kept() -> list[Probed]:
    """All verdicts on disk, the newest first."""
    found = [_read(path) for path in sorted(_folder().glob("*.json"))]
    return sorted(filter(None, found), key=lambda probed: probed.day, reverse=True)


def remembered(fingerprint: Mapping[str, Any]) -> Probed | None:
    """The verdict on a delegate with this fingerprint; `None`: it was not probed."""
    return _read(_file(fingerprint))


def _read(path: Path) -> Probed | None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        probed = Probed(**facts)
        date.fromisoformat(probed.day)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return probed if probed.verdict in get_args(Verdict) else None


def _kept(delegate: Delegate, verdict: Verdict, reply: str) -> Probed:
    fingerprint = delegate.fingerprint
    probed = Probed(
        verdict=verdict,
        mode=delegate.mode,
        model=delegate.model,
        base_url=fingerprint.get("base_url"),
        reply=reply[:500],
        day=datetime.now(UTC).date().isoformat(),
        package=version("langchain-relay"),
    )
    try:
        _write(_file(fingerprint), probed)
    except OSError as error:  # it is paid for, and the answer is worth something without a file
        logger.warning("the verdict on %s could not be kept: %s", probed.model, error)
    return probed


def _write(path: Path, probed: Probed) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(probed), ensure_ascii=False, indent=1)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False, suffix=".part") as part:
        part.write(text.encode(errors="replace"))
    try:
        Path(part.name).replace(path)
    except OSError:
        Path(part.name).unlink(missing_ok=True)
        raise


def _file(fingerprint: Mapping[str, Any]) -> Path:
    known = {
        name: fingerprint.get(name) for name in ("delegate", "model", "base_url", "mode", "flag")
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()
    return _folder() / f"{digest[:24]}.json"


def _folder() -> Path:
    if given := os.environ.get("LANGCHAIN_RELAY_CACHE"):
        return Path(given) / "probes"
    import platformdirs

    return Path(platformdirs.user_cache_dir("langchain-relay", appauthor=False)) / "probes"
