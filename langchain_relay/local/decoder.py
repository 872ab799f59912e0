"""From asks to steps: all that have asked, and all that may be guessed, in one batch after another.

    ask → the sequence changed → a row of the batch → logits → a step, given or kept ahead

While a caller looks at a token the next ones are decoded, as though the caller will say "append
it"; a caller who says something else finds the sequence as though nothing had been decoded.

Used by the engine thread only. Nothing here knows llama.cpp or numpy.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from langchain_relay.engine.values import Rule, Step
from langchain_relay.errors import (
    ContextOverflowError,
    LocalModelError,
    RelayError,
    UsageMistake,
)
from langchain_relay.local.batch import Part, plan
from langchain_relay.local.inbox import Ask, Fed, fail, ours
from langchain_relay.local.picking import follow, pick, signals
from langchain_relay.local.sampling import SIGNALS

if TYPE_CHECKING:
    from langchain_relay.local.context_types import Context
    from langchain_relay.local.lease import Lease
    from langchain_relay.local.lender import Lender
    from langchain_relay.local.sequence import Sequence

logger = logging.getLogger(__name__)

RUN_AHEAD = 8
"""Steps decoded before they are asked for, at most."""

RUN_AHEAD_BESIDE = 1
"""The same as long as others wait for tokens: a guess that is thrown away costs them time."""

PACE_S = 1 / 60
"""A reader of a lone chat is woken no more often than a screen is drawn.

Until then it gets no step that is ready but one more, and finds the others when it wakes. Waking a
thread while llama.cpp decodes takes a core from it: with each token of SmolLM2-135M 2 % of its
speed. Models slower than this are read token by token.
"""


class Decoder:
    """Decodes for all leases of one context together.

    Args:
        context: What decodes.
        lender: Hears how far each sequence is evaluated.
        n_batch: Tokens in one batch.
        run_ahead: Steps decoded before they are asked for; 0 is off.
    """

    def __init__(self, context: Context, lender: Lender, *, n_batch: int, run_ahead: int) -> None:
        self.leases: dict[Lease, None] = {}
        self._context = context
        self._lender = lender
        self._n_batch = n_batch
        self._run_ahead = min(run_ahead, RUN_AHEAD) if context.rewinds else 0
        self._asking: dict[Lease, None] = {}  # in the order of their asks
        self._answered: set[Lease] = set()  # since the last batch, and silent since
        self._warned = False

    # --- who is decoded for ---------------------------------------------------------------------

    def join(self, lease: Lease, *, copied: bool) -> None:
        """Decode for `lease` too; `copied`: llama.cpp has yet to copy what its sequence holds."""
        self.leases[lease] = None
        if copied:
            # llama.cpp copies at the next decode: until then nobody may move what is copied from.
            lease.feeding = True  # its scores are kept in case that was the prompt's last token
            self._evaluate([Part(lease, 1)])

    def leave(self, lease: Lease, error: RelayError) -> bool:
        """Decode for `lease` no more; an ask fails with `error`. `False`: it had left already."""
        lease.drop_guesses()  # from now on nobody can wait for one of them
        with suppress(LocalModelError):
            lease.sequence.change((), 0, more_text=False)
        self._answered.discard(lease)
        self._fail_ask(lease, error)
        if lease not in self.leases:
            return False
        del self.leases[lease]
        self._asking.pop(lease, None)
        return True

    def end(self, error: RelayError) -> None:
        """Fail all asks with `error`."""
        for lease in self.leases:
            lease.drop_guesses()  # from now on everybody has to ask us, and is refused
            self._fail_ask(lease, error)

    @property
    def expects_more(self) -> bool:
        """Some wait for a token, and others who have theirs may ask for the next one soon."""
        return bool(self._asking and self._answered)

    def expect_no_more(self) -> None:
        """Those who have not asked yet are not waited for."""
        self._answered.clear()

    # --- asks -----------------------------------------------------------------------------------

    def feed(self, fed: Fed) -> None:
        """A session puts text into its context."""
        lease = fed.lease
        self._answered.discard(lease)
        if lease not in self.leases:
            return
        if lease.future is not None or lease.ahead.awaited is not None:
            self._fail_ask(lease, UsageMistake("text was fed while a token was being decoded"))
        try:
            lease.drop_guesses()
            lease.sequence.change(fed.ask.append, fed.ask.rewind, more_text=True)
        except Exception as error:  # noqa: BLE001 - one chat's fault must not end the others
            lease.error = ours(error)
        lease.feeding, lease.scores = True, None
        self._tidy(lease.sequence)

    def ask(self, message: Ask) -> None:
        """A session wants a token."""
        lease, ask = message.lease, message.ask
        self._answered.discard(lease)
        try:
            self._check_ask(lease, ask.rule)
            lease.drop_guesses()
            lease.sequence.change(ask.append, ask.rewind, more_text=False)
            self._check_room(lease.sequence)
            follow(self._context, lease, ask.rule)
        except Exception as error:  # noqa: BLE001 - as in `feed`
            fail(message.future, ours(error))
            return
        scores, lease.scores = lease.scores, None
        lease.feeding, lease.future = False, message.future
        if not lease.sequence.pending:
            if scores is not None and not ask.rewind and "hidden" not in ask.rule.signals:
                self._answer_lease(lease, None, scores)
                return
            # Nothing new to evaluate: the logits behind the last token are asked for again.
            lease.sequence.evaluated -= 1
        self._tidy(lease.sequence)
        self._asking[lease] = None

    def _check_ask(self, lease: Lease, rule: Rule) -> None:
        if lease not in self.leases:
            raise LocalModelError("the session is closed")
        self._drop_cancelled(lease)
        if lease.future is not None or lease.ahead.awaited is not None:
            raise UsageMistake("a session decodes one token at a time; await the last one first")
        if lease.error is not None:
            error, lease.error = lease.error, None
            raise error
        if unknown := rule.signals - SIGNALS:
            raise UsageMistake(f"no signal {sorted(unknown)}; there are {sorted(SIGNALS)}")

    def _check_room(self, sequence: Sequence) -> None:
        n_ctx = self._context.n_ctx
        if len(sequence.tokens) > n_ctx:
            raise ContextOverflowError(
                f"the conversation has {len(sequence.tokens)} tokens and the context of one chat "
                f"holds {n_ctx}; lower max_tokens or raise n_ctx",
                needed_tokens=len(sequence.tokens),
                n_ctx=n_ctx,
            )

    def _tidy(self, sequence: Sequence) -> None:
        """Make the KV cache end where the evaluated tokens end."""
        if sequence.cached <= sequence.evaluated:
            return
        kept = sequence.evaluated
        self._cut_back(sequence)
        if sequence.evaluated < kept:
            self._say_once(kept)

    def _cut_back(self, sequence: Sequence) -> None:
        """Forget all behind the evaluated tokens."""
        if not self._context.cut(sequence.id, sequence.evaluated):
            # A recurrent model cannot forget a part: start over.
            self._context.cut(sequence.id, 0)
            sequence.evaluated = 0
        sequence.cached = sequence.evaluated

    def _say_once(self, tokens: int) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "this model's state cannot be taken back in part (it is recurrent): whatever "
                "replaces text evaluates the whole chat again, %d tokens this time",
                tokens,
            )

    # --- decoding -------------------------------------------------------------------------------

    def step(self) -> bool:
        """One batch: evaluate, then answer every ask whose tokens are all evaluated.

        Returns:
            Whether there was anything to do.
        """
        for lease in list(self._asking):
            self._drop_cancelled(lease)
        feeding = [
            (lease, n) for lease in self.leases if lease.feeding and (n := self._feedable(lease))
        ]
        parts = plan([*self._asking, *self._guessing()], feeding, self._n_batch)
        served = False
        for lease in self.leases:
            if len(parts) != 1 or parts[0].lease is not lease:
                served |= self._serve(lease)  # who knows when its next step comes
        if parts:
            self._evaluate(parts)
        return bool(parts) or served

    def _guessing(self) -> list[Lease]:
        """Leases for which the last token is appended before the caller says so."""
        leases = [
            lease
            for lease in self.leases
            if lease.guess is not None and lease.ahead.claim(self._depth(lease))
        ]
        for lease in leases:
            lease.append_guess()
        return leases

    def _depth(self, lease: Lease) -> int:
        """How many steps may wait to be asked for."""
        if len(self.leases) > 1 and any(
            other is not lease and other.keeps_up for other in self.leases
        ):
            return min(self._run_ahead, RUN_AHEAD_BESIDE)
        return self._run_ahead

    def _feedable(self, lease: Lease) -> int:
        if len(lease.sequence.tokens) > self._context.n_ctx:
            return 0
        return lease.sequence.feedable(rewinds=self._context.rewinds)

    def _evaluate(self, parts: list[Part]) -> None:
        rows, hidden = [], False
        for part in parts:
            rows += part.rows()
            hidden = hidden or "hidden" in part.lease.rule.signals
        rc = self._context.decode(rows, hidden=hidden)
        if rc == 0:
            self._answer(parts)
        elif len(parts) > 1:
            # Find whose fault it is: each alone, from where it stood.
            for part in parts:
                self._cut_back(part.lease.sequence)
                self._evaluate([part])
        else:
            self._cut_back(parts[0].lease.sequence)
            said = self._context.last_words()
            self._fail_step(
                parts[0].lease, LocalModelError(f"llama.cpp could not decode (error {rc}). {said}")
            )

    def _answer(self, parts: list[Part]) -> None:
        row = -1
        for part in parts:
            row += part.n
            lease = part.lease
            lease.sequence.note_evaluated(part.n)
            self._lender.note_evaluated(lease.sequence)
            if lease.sequence.pending:
                continue
            if lease.feeding:
                lease.scores = self._context.logits(row).copy()  # whoever asks next may be late
            else:
                self._answer_lease(lease, row)

    def _answer_lease(self, lease: Lease, row: int | None, scores: Any = None) -> None:
        """Sample from a row of the last decode, or from scores that were kept."""
        try:
            logits = scores if row is None else self._context.logits(row)
            found = signals(self._context, lease.rule, logits, row) if lease.rule.signals else {}
            step = pick(self._context, lease, logits, found)
        except Exception as error:  # noqa: BLE001 - as in `feed`
            self._fail_step(lease, ours(error))
        else:
            self._deliver(lease, step)

    def _deliver(self, lease: Lease, step: Step) -> None:
        """Hand `step` to whoever waits for it, or keep it for when it is asked for."""
        asked, lease.future = lease.future, None
        room = len(lease.sequence.tokens) < self._context.n_ctx
        coming = bool(self._run_ahead) and room and not step.eog
        if coming:
            lease.guess = step.id
        else:
            self._answered.add(lease)
        if asked is not None:
            self._asking.pop(lease, None)
            lease.ahead.give(step, lease.rule, coming=coming)
            self._wake(lease, asked, step)
            return
        lease.ahead.push(step, coming=coming)
        soon = coming and len(self.leases) == 1
        if not soon or time.monotonic() - lease.served_s >= PACE_S:
            self._serve(lease)

    def _serve(self, lease: Lease) -> bool:
        """Give whoever waits the step that is ready; whether there were both."""
        served = lease.ahead.serve()
        if served is None:
            return False
        self._wake(lease, *served)
        return True

    def _wake(self, lease: Lease, waiting: Future[Step], step: Step) -> None:
        lease.served_s = time.monotonic()
        try:
            waiting.set_result(step)
        except InvalidStateError:  # cancelled
            lease.ahead.hold()
            if lease.ahead.awaited is None:  # else somebody asked again between the two
                lease.guess = None
            self._answered.discard(lease)

    def _drop_cancelled(self, lease: Lease) -> None:
        if lease.future is not None and lease.future.cancelled():
            self._asking.pop(lease, None)
            lease.future = None
        awaited = lease.ahead.awaited
        if awaited is not None and awaited.cancelled():
            lease.keep_guess()

    def _fail_step(self, lease: Lease, error: RelayError) -> None:
        """The ask fails. A guess is only taken back: if it is asked for, it fails then."""
        self._serve(lease)
        lease.ahead.hold()  # from now on nobody can begin to wait for a guess
        if lease.future is None and lease.ahead.awaited is None:
            lease.feeding = False  # else it would be tried again at once, for ever
            lease.drop_guesses()
            self._tidy(lease.sequence)
        self._fail_ask(lease, error)

    def _fail_ask(self, lease: Lease, error: RelayError) -> None:
        future, lease.future = lease.future or lease.keep_guess(), None
        if future is not None:
            self._asking.pop(lease, None)
            fail(future, error)
