"""The next token of a lease from its logits: signals, sampler, grammar and bans.

The candidate is sampled first and then checked; only if it must not stand there is anything masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_relay.engine.values import Rule, Step
from langchain_relay.errors import LocalModelError
from langchain_relay.local.text import begins, forbidden

if TYPE_CHECKING:
    from langchain_relay.local.context_types import Context, TextGrammar
    from langchain_relay.local.lease import Lease


_NEVER = float("-inf")
"""The score of a token that must not stand here."""


def follow(context: Context, lease: Lease, rule: Rule) -> None:
    """From now on `lease` is under `rule`; a new grammar begins here."""
    if rule is lease.rule:
        return
    old = lease.grammar
    if rule.grammar != (old and old.text):
        new = None if rule.grammar is None else context.grammar(rule.grammar)
        lease.grammar, lease.grammar_start = new, lease.sequence.position
        if old is not None:
            old.free()
    # Last: a rule whose grammar was refused is not followed, and is refused again.
    lease.rule, lease.banned = rule, forbidden(rule.ban)


def signals(context: Context, rule: Rule, logits: Any, row: int | None) -> dict[str, Any]:
    """What the rule asks for."""
    found: dict[str, Any] = dict(context.measure(logits, rule.signals))
    if "hidden" in rule.signals and row is not None:
        found["hidden"] = context.hidden(row)
    return found


def pick(context: Context, lease: Lease, logits: Any, signals: dict[str, Any]) -> Step:
    """Sample the candidate first and check it; mask only on failure."""
    sequence, banned = lease.sequence, lease.banned
    tail = sequence.local_tail(max(map(len, banned))) if banned else ""
    grammar = lease.grammar and _grammar(lease, lease.grammar)
    for attempt in range(len(logits)):
        token = lease.sampler.pick(logits, sequence.position, sequence.last_written, attempt)
        if logits[token] == _NEVER:
            break
        if grammar is not None and not grammar.allows(token):
            grammar.mask(logits)
            continue
        if context.vocab.is_eog(token):
            return Step(token, "", eog=True, signals=signals)
        text = sequence.text_of(token)
        if not banned or not begins(tail, text, banned):
            return Step(token, text, signals=signals)
        logits[token] = _NEVER
    raise LocalModelError("no token may follow: all are banned or outside the grammar")


def _grammar(lease: Lease, grammar: TextGrammar) -> TextGrammar:
    # What a rewind takes back may lie before the place where the grammar began.
    lease.grammar_start = min(lease.grammar_start, lease.sequence.position)
    grammar.follow(lease.sequence.local_since(lease.grammar_start))
    return grammar
