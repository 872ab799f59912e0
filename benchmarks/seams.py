"""How often a model that is asked to continue a draft joins it: no word doubled, glued or split.

A real instruct model plays the hosted one. It is shown real texts cut at its own token boundaries
as `instruct` mode shows them, its reply goes through the seam, and the joint is judged as
`cuts.py` says. The same model in `prefill` mode is the reference: there nothing can go wrong but
the model's own choice of words.

    make bench ARGS=seams                # the shipped request and the reference
    python -m benchmarks.seams 48        # every request tried, 48 cuts each
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage

from benchmarks.cuts import KINDS, Cut, defect, drawn, interval, passages
from benchmarks.measure import Row, Told
from benchmarks.plan import Plan
from benchmarks.requests import REQUESTS, Request
from langchain_relay.delegates import LocalDelegate, continuation
from langchain_relay.delegates.continuation import Seam, continue_messages
from langchain_relay.engine.values import Attempt, Delta, Mode
from langchain_relay.local import LlamaCppModel
from langchain_relay.local.server.gguf_vocab import GgufVocabulary

MAX_TOKENS = 8
N_CTX = 1024
CUTS_PER_PASSAGE = 12
CLEAN, DECLINED = "clean", "declined"


class Asking(LocalDelegate):
    """A local model that is asked for a continuation, as hosted chat models are."""

    @property
    def mode(self) -> Mode:
        return "instruct"

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        messages = continue_messages(attempt.messages, attempt.draft, "instruct")
        return super().stream(replace(attempt, messages=tuple(messages), draft=""))


@dataclass(slots=True)
class Tally:
    """What became of the seams of one kind of text."""

    found: Counter[str] = field(default_factory=Counter)
    places: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, cut: Cut, verdict: str) -> None:
        self.found[verdict] += 1
        self.places[cut.place, verdict] += 1

    def as_json(self) -> dict[str, Any]:
        shown = self.found.total() - self.found[DECLINED]
        places = sorted({place for place, _ in self.places})
        return {
            "cuts": self.found.total(),
            **{
                name: self.found[name]
                for name in (CLEAN, "doubled", "glued", "split", "anew", DECLINED)
            },
            "clean_share_of_shown": _share(self.found[CLEAN], shown),
            "interval_95": [round(end, 4) for end in interval(self.found[CLEAN], shown)],
            "by_place": {
                place: {v: n for (p, v), n in sorted(self.places.items()) if p == place}
                for place in places
            },
        }


def _share(hits: int, n: int) -> float | None:
    return round(hits / n, 4) if n else None


def cuts_of(model: str, n: int) -> list[Cut]:
    """About `n` cuts at the token boundaries of `model`, the same number of each kind.

    Few cuts are taken from few passages, so that most of each draft is in the KV cache already.
    """
    vocabulary = GgufVocabulary(model)
    per_kind = -(-n // len(KINDS))
    used = max(2, per_kind // CUTS_PER_PASSAGE)
    return [
        cut
        for kind in KINDS
        for cut in drawn(
            kind, per_kind, [_boundaries(vocabulary, p.text) for p in passages(kind)[:used]]
        )
    ]


def _boundaries(vocabulary: GgufVocabulary, text: str) -> list[int]:
    """Where a character and a token end together."""
    pieces = vocabulary._vocab  # noqa: SLF001 - only here a token's bytes are asked for
    ends, data = [], b""
    for token in pieces.tokenize(text, special=False, first=True):
        data += pieces.piece(token)
        try:
            ends.append(len(data.decode()))
        except UnicodeDecodeError:
            continue
    return ends


def replies(delegate: LocalDelegate, cuts: Sequence[Cut], told: Told) -> list[str]:
    """What the model writes behind each draft."""
    found = []
    for number, cut in enumerate(cuts, start=1):
        if number % 25 == 0:
            told(f"{delegate.mode}: cut {number} of {len(cuts)}")
        asked = Attempt((HumanMessage(cut.passage.question),), cut.draft, MAX_TOKENS)
        found.append("".join(delta.text for delta in delegate.stream(asked)))
    return found


def judged(cut: Cut, reply: str, mode: Mode) -> str:
    """What becomes of the seam when the model replies so."""
    seam = Seam(cut.draft, mode)
    shown = seam.push(reply) + seam.flush()
    return (defect(cut, shown) or CLEAN) if shown.strip() else DECLINED


def tallies(cuts: Sequence[Cut], said: Sequence[str], mode: Mode) -> dict[str, Tally]:
    """By kind, and `all`."""
    found = {name: Tally() for name in ("all", *KINDS)}
    for cut, reply in zip(cuts, said, strict=True):
        for name in ("all", cut.passage.kind):
            found[name].add(cut, judged(cut, reply, mode))
    return found


def asked(model: LlamaCppModel, mode: Mode) -> LocalDelegate:
    return LocalDelegate(model) if mode == "prefill" else Asking(model)


def measure(plan: Plan, told: Told) -> list[Row]:
    """Rows of the shipped request, of the reference, and of the texts as they really go on."""
    cuts = cuts_of(plan.model, plan.cuts)
    truth = tallies(cuts, [cut.draft[len(cut.draft.rstrip()) :] + cut.rest for cut in cuts], "flag")
    rows = []
    with LlamaCppModel(plan.model, n_ctx=N_CTX, n_threads=plan.threads, max_concurrency=1) as model:
        for mode in ("instruct", "prefill"):
            said = replies(asked(model, mode), cuts, told)
            rows += _rows(mode, tallies(cuts, said, mode))
    return [*rows, *_rows("the text itself", truth)]


def _rows(mode: str, found: Mapping[str, Tally]) -> list[Row]:
    return [_row(mode, name, tally) for name, tally in found.items()]


def _row(mode: str, name: str, tally: Tally) -> Row:
    facts = tally.as_json()
    low, high = facts["interval_95"]
    share = facts["clean_share_of_shown"]
    note = f"{tally.found[CLEAN]} of {tally.found.total()}, {tally.found[DECLINED]} without text"
    return Row(
        "seams",
        f"{mode}, {name}: seams without a doubled, glued or split word, nor begun anew",
        "%",
        values=() if share is None else (100 * share,),
        note=f"{note}; 95 %: {100 * low:.1f} to {100 * high:.1f}",
        facts=facts,
    )


# --- which request does best --------------------------------------------------------------------


def worded(request: Request) -> None:
    """Ask in these words from now on."""
    continuation._REQUEST = request.request  # noqa: SLF001 - what is under test
    continuation._TASKS["instruct"] = request.task  # noqa: SLF001 - as above


def compared(name: str, cuts: Sequence[Cut], model: LlamaCppModel) -> dict[str, Any]:
    """What one request gives at these cuts."""
    worded(REQUESTS[name])
    started = time.perf_counter()
    said = replies(Asking(model), cuts, lambda _: None)
    found = tallies(cuts, said, "instruct")
    print(f"{name}: {dict(found['all'].found)} ({time.perf_counter() - started:.0f} s)", flush=True)
    return {**{kind: tally.as_json() for kind, tally in found.items()}, "replies": said}


def main() -> None:
    """Compare requests: the number of cuts, then names of requests; default: all of them."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 48
    names = sys.argv[2:] or [name for name in REQUESTS if name != "shipped"]
    cuts = cuts_of(Plan().model, n)
    with LlamaCppModel(Plan().model, n_ctx=N_CTX, max_concurrency=1) as model:
        facts = {"model": model.name, "python": platform.python_version(), "max_tokens": MAX_TOKENS}
        for name in names:
            _keep(facts, name, compared(name, cuts, model))


def _keep(facts: Mapping[str, Any], name: str, found: Mapping[str, Any]) -> None:
    """Write it beside what other runs of the day found."""
    day = datetime.now(tz=UTC).date().isoformat()
    out = Path(__file__).parent / "results" / f"seam-requests-{day}.json"
    known = json.loads(out.read_text(encoding="utf-8"))["requests"] if out.exists() else {}
    report = {**facts, "requests": {**known, name: found}}
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
