"""Several hosted models in one role: where the first is down, the next goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_relay.delegates.resolve import resolve_delegate
from langchain_relay.engine.values import Attempt, Delegate, Delta, Mode
from langchain_relay.errors import UsageMistake

__all__ = ["FallbackDelegate", "members"]


class FallbackDelegate:
    """Asks the first model; where it fails, the next goes on from what has already arrived.

    ```python
    FallbackDelegate(ChatOpenAI(model="gpt-5-mini"), "anthropic:claude-haiku-4-5", LocalDelegate(m))
    ```

    A model is given up for a hand-over when its retries are used up, its error is not worth a
    retry, its circuit breaker is open, or a budget in US dollars refuses its price. Each model is
    shown the draft in its own mode, and each request is reserved and charged at its own price under
    its own name; spans and events name who wrote. All share one `timeout`: a model that hangs uses
    it up, until its breaker opens. `delegate_model=` of a call renames the first model only.

    Args:
        primary: Whatever `delegate=` takes.
        others: The same, in the order in which they are asked. A `FallbackDelegate` among them
            stands for its members.

    Raises:
        UsageMistake: there is no second model, or one is named twice.
        UnknownDelegate: one of them cannot be a delegate.
    """

    def __init__(self, primary: object, *others: object) -> None:
        given = (primary, *others)
        if not others:
            raise UsageMistake(
                "FallbackDelegate got one model and has nobody to fall back on: name a second, or "
                "pass the model itself as `delegate`"
            )
        _refuse_twice(given)
        self._members = tuple(one for value in given for one in members(resolve_delegate(value)))
        _refuse_twice(self._members)

    @property
    def members(self) -> tuple[Delegate, ...]:
        """The models, in the order in which they are asked."""
        return self._members

    @property
    def model(self) -> str:
        """The first model's name."""
        return self._members[0].model

    @property
    def mode(self) -> Mode:
        """The first model's; in a hand-over each is asked in its own."""
        return self._members[0].mode

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """See `Delegate.fingerprint`."""
        return {"delegate": "fallback", "members": [dict(m.fingerprint) for m in self._members]}

    @property
    def worst_attempts(self) -> int | None:
        """The most that one attempt at any of the models sends."""
        known = [one.worst_attempts for one in self._members]
        return max((n for n in known if n is not None), default=None) if None not in known else None

    def input_bound(self, attempt: Attempt) -> int:
        """See `Delegate.input_bound`; the largest of all the models."""
        return max(one.input_bound(attempt) for one in self._members)

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        """One attempt at the first model; who asks the next is the hand-over's business."""
        return self._members[0].stream(attempt)

    def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        """Async twin of `stream`."""
        return self._members[0].astream(attempt)


def members(delegate: Delegate) -> tuple[Delegate, ...]:
    """The models that a hand-over to `delegate` may ask, in order."""
    return delegate.members if isinstance(delegate, FallbackDelegate) else (delegate,)


def _refuse_twice(given: tuple[object, ...]) -> None:
    for at, one in enumerate(given):
        if any(one is other or (isinstance(one, str) and one == other) for other in given[:at]):
            name = one if isinstance(one, str) else getattr(one, "model", type(one).__name__)
            raise UsageMistake(
                f"FallbackDelegate got {name!r} twice: a second try at one model is a retry "
                f"(max_retries=), a fallback is another model"
            )
