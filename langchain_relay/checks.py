"""What `RelayChatModel` refuses, and how it says so. Nothing here loads or decides anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from inspect import iscoroutinefunction
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel

from langchain_relay.budget import Allowance, Budget
from langchain_relay.engine.policy import Policy
from langchain_relay.engine.values import Delegate, Sampling
from langchain_relay.errors import UnknownDelegate, UsageMistake

if TYPE_CHECKING:
    from langchain_relay.chat_models import RelayChatModel

SAMPLING = tuple(field.name for field in fields(Sampling))
PER_CALL = frozenset({*SAMPLING, "max_tokens", "delegation", "model", "delegate_model", "budget"})
"""What may be given anew for one call, beside `stop`."""


def require(values: Mapping[str, Any], *names: str) -> None:
    """Refuse a construction without the fields it cannot do without.

    Raises:
        UnknownDelegate: there is no delegate.
        UsageMistake: another field is missing.
    """
    hints = {
        "model": 'the local model, such as "smollm2-135m" or a path to a .gguf',
        "delegate": 'the hosted model, such as ChatOpenAI(...) or "openai:gpt-5-mini"',
    }
    for name in names:
        if values.get(name) is None:
            error = UnknownDelegate if name == "delegate" else UsageMistake
            raise error(f"RelayChatModel needs {name}=: {hints[name]}")


_MISSPELT = 0.8
"""How alike, from 0 to 1, a name is to that of a field if it was meant (difflib's ratio)."""


def refuse_misspelt(given: Iterable[str], names: Iterable[str]) -> None:
    """A budget under a misspelt name would be no budget.

    Raises:
        UsageMistake: a name is not that of a field, and nearly is.
    """
    known = set(names)
    for name in set(given) - known:
        if near := get_close_matches(name, known, n=1, cutoff=_MISSPELT):
            raise UsageMistake(f"RelayChatModel has no field {name!r}; did you mean {near[0]!r}?")


_RANGES: Mapping[str, tuple[float, float]] = {
    "max_tokens": (1, inf),
    "max_span_tokens": (1, inf),
    "max_calls": (0, inf),
    "draft_window": (16, inf),
    "max_retries": (0, inf),
    "max_concurrency": (1, inf),
    "n_ctx": (1, inf),
    "n_threads": (1, inf),
    "n_gpu_layers": (-1, inf),
    "temperature": (0, inf),
    "top_k": (0, inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0, inf),
    "seed": (-inf, inf),
}


_FRACTIONAL = frozenset({"temperature", "top_p", "min_p", "repeat_penalty"})


def check_fields(model: RelayChatModel) -> None:
    """Refuse fields of the wrong kind or out of range, before anything is loaded.

    Raises:
        UsageMistake: says which, what it is and what it may be.
    """
    _check_ranges({name: getattr(model, name) for name in _RANGES})
    if model.timeout is not None and model.timeout <= 0:
        raise UsageMistake(f"timeout={model.timeout}: seconds above 0, or None for no deadline")
    if isinstance(model.policy, type) or not isinstance(model.policy, Policy):
        raise UsageMistake(f"policy={model.policy!r}: pass a policy, such as CallTokens()")
    _check_local(model.model)
    budgets(model.budget)
    redact: object = model.redact
    if redact is not None and (not callable(redact) or iscoroutinefunction(redact)):
        raise UsageMistake(
            f"redact={redact!r}: pass a plain function from a text to the redacted text; it "
            f"runs in a thread where answers are awaited"
        )


def _check_local(model: object) -> None:
    if not isinstance(model, str | Path) and not callable(getattr(model, "open", None)):
        if isinstance(model, BaseChatModel):
            raise UsageMistake(
                f"model= is the local model, which writes; {type(model).__name__} goes to "
                f"delegate=. Pass an alias, a path to a .gguf, or a LlamaCppModel"
            )
        raise UsageMistake(f"model={model!r}: pass an alias, a path to a .gguf, or a LlamaCppModel")


def budgets(given: object) -> tuple[Budget | Allowance, ...]:
    """One budget, several or none, as a tuple.

    Raises:
        UsageMistake: something else was given.
    """
    several = given if isinstance(given, list | tuple) else () if given is None else (given,)
    if any(not isinstance(budget, Budget | Allowance) for budget in several):
        raise UsageMistake(f"budget={given!r}: pass Budget(usd=...), or several in a list")
    return tuple(several)


def _check_ranges(values: Mapping[str, Any]) -> None:
    for name, (least, most) in _RANGES.items():
        value = values.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageMistake(f"{name}={value!r}: a number is needed")
        if name not in _FRACTIONAL and not isinstance(value, int):
            raise UsageMistake(f"{name}={value!r}: a whole number is needed")
        if not least <= value <= most:
            bounds = f"at least {least}" if most == inf else f"from {least} to {most}"
            raise UsageMistake(f"{name}={value}: must be {bounds}")


def check_countable(delegate: Delegate, model: str) -> None:
    """A budget needs to see every request.

    Raises:
        UsageMistake: nobody can say how many requests one attempt sends.
    """
    if delegate.worst_attempts is None:
        raise UsageMistake(
            f"a budget needs to see every request, but nobody can say how often "
            f"{type(delegate).__name__} for {model!r} retries on its own: wrap a client "
            f"in OpenAIDelegate, or give the chat model a `max_retries` field"
        )


def stop_strings(stop: Sequence[str] | str | None) -> tuple[str, ...]:
    """Stop strings as the engine takes them; one string is one, not its letters."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def check_per_call(kwargs: Mapping[str, Any]) -> None:
    """A setting nobody reads would look as if it worked."""
    unknown = [name for name in kwargs if name not in PER_CALL and not name.startswith("ls_")]
    if unknown:
        raise UsageMistake(
            f"RelayChatModel does not take {', '.join(map(repr, sorted(unknown)))} per call; it "
            f"takes {', '.join(sorted(PER_CALL))} and stop"
        )
    if kwargs.get("delegation") not in (None, "auto", "never", "always"):
        raise UsageMistake(f"delegation={kwargs['delegation']!r}: use 'auto', 'never' or 'always'")
    named = kwargs.get("delegate_model")
    if named is not None and not isinstance(named, str):
        raise UsageMistake(
            f"delegate_model={named!r}: the name of another model at the delegate's host, such as "
            f"'gpt-5-mini'"
        )
    if kwargs.get("model") is not None:
        _check_local(kwargs["model"])
    _check_ranges(kwargs)
