"""What the topic `seams` counts, with a double in place of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import seams
from benchmarks.cuts import KINDS, Cut, drawn, passages
from benchmarks.requests import REQUESTS
from langchain_relay.delegates import continuation
from langchain_relay.engine.values import Attempt, Delta

CUTS = [cut for kind in KINDS for cut in drawn(kind, 12, [range(30, 150)] * len(passages(kind)))]


class Writing:
    """Writes what a function of the cut says."""

    mode = "instruct"

    def __init__(self, reply: Callable[[Cut], str]) -> None:
        self._replies = iter(map(reply, CUTS))

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        yield Delta(text=next(self._replies))


def counted(reply: Callable[[Cut], str]) -> dict[str, Any]:
    delegate: Any = Writing(reply)
    said = seams.replies(delegate, CUTS, lambda _: None)
    return {kind: t.as_json() for kind, t in seams.tallies(CUTS, said, "instruct").items()}


def whole_rest(cut: Cut) -> str:
    return cut.passage.text[len(cut.draft.rstrip()) :]


def test_who_goes_on_with_the_text_has_clean_seams():
    found = counted(whole_rest)
    assert found["all"]["cuts"] == len(CUTS)
    assert found["all"]["clean_share_of_shown"] > 0.97
    assert {found[kind]["cuts"] for kind in KINDS} == {12}


def test_who_begins_with_the_last_word_again_has_doubled_ones():
    found = counted(lambda cut: cut.draft.split()[-1] + " and")
    assert found["english"]["doubled"] >= 6
    assert found["english"]["clean_share_of_shown"] < 0.5


def test_who_begins_without_a_blank_glues_words():
    behind = [cut for cut in CUTS if cut.place == "behind a word"]
    found = counted(lambda cut: "zzz")
    assert found["all"]["by_place"]["behind a word"] == {"glued": len(behind)}


def test_what_shows_nothing_is_declined_and_not_in_the_share():
    found = counted(lambda cut: " " if cut.passage.kind == "code" else whole_rest(cut))
    assert found["code"]["declined"] == 12
    assert found["code"]["clean_share_of_shown"] is None
    assert found["all"]["declined"] == 12


def test_the_shipped_request_is_one_of_those_tried():
    shipped = REQUESTS["shipped"]
    assert shipped == REQUESTS["open end"]
    assert shipped.request == continuation._REQUEST
