"""The README's Python runs as it stands, prints what the README shows, and its commands exist."""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of Python, and the output that stands right below it, if any."""

    code: str
    line: int
    shown: str | None

    @property
    def decodes(self) -> bool:
        return "smollm2-135m" in self.code


def blocks() -> list[Block]:
    fences = list(FENCE.finditer(TEXT))
    found = []
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] != "python":
            continue
        adjacent = after and after[1] == "text" and not TEXT[fence.end() : after.start()].strip()
        shown = after[2] if after and adjacent else None
        found.append(Block(fence[2], TEXT[: fence.start(2)].count("\n"), shown))
    return found


BLOCKS = blocks()


def run(block: Block, names: dict[str, Any]) -> str:
    """What the block prints. It runs in the same names as those before it."""
    out = io.StringIO()
    source = "\n" * block.line + block.code  # so that a traceback names the README's line
    with redirect_stdout(out):
        exec(compile(source, str(README), "exec"), names)
    return out.getvalue()


def shape(output: str) -> list[str]:
    """What must be the same on every machine: greedy text may differ in a last bit of a score."""
    rows = re.findall(r"^(\w[\w ]*): ", output, re.MULTILINE)
    return [*rows, "hosted words" if re.search(r"\[[^\]]+\]", output) else "local words only"]


@pytest.mark.gguf
@pytest.mark.xdist_group("gguf")
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")  # as a user would have it
def test_every_block_runs_and_prints_what_is_shown(monkeypatch: pytest.MonkeyPatch):
    # One decode thread for each model: more threads than free cores slow all of them down.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    names: dict[str, Any] = {"__name__": "readme"}
    for block in BLOCKS:
        printed = run(block, names)
        print(f"--- README.md, line {block.line}\n{printed}")  # pytest -s shows what to paste
        if block.shown is None:
            assert not printed
        elif block.decodes:
            assert shape(printed) == shape(block.shown)
        else:
            assert printed == block.shown


def test_the_first_screen_shows_hosted_words_and_their_price():
    first = BLOCKS[0]

    assert len(first.code.splitlines()) <= 15
    assert first.shown is not None
    assert "hosted words" in shape(first.shown)
    assert re.search(r"^cost: 0\.\d+ USD", first.shown, re.MULTILINE)


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", TEXT, re.MULTILINE))

    assert {"demo", "test"} <= named <= targets


def test_every_relative_link_leads_somewhere():
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", TEXT)

    assert links
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []


def test_every_public_policy_and_test_double_is_named():
    from langchain_relay import policies, testing

    assert [n for n in (*policies.__all__, *testing.__all__) if n not in TEXT] == []


def test_every_event_and_field_is_in_the_table():
    from langchain_relay import schema

    rows = {m[1]: m[0] for m in re.finditer(r"^\| `(relay\.[a-z.]+)` .*$", TEXT, re.MULTILINE)}
    started = set(schema.CallStartedEvent.__annotations__)
    finished = set(schema.CallFinishedEvent.__annotations__)
    failed = set(schema.CallFailedEvent.__annotations__)

    assert set(rows) == set(get_args(schema.EventName))
    assert named_in(rows["relay.call.started"]) == started
    assert named_in(rows["relay.call.finished"]) | started == finished
    assert named_in(rows["relay.call.failed"]) - {"declined"} | failed & finished == failed
    assert named_in(rows["relay.call.denied"]) == set(schema.CallDeniedEvent.__annotations__)
    warning = set(schema.BudgetWarningEvent.__annotations__)
    assert named_in(rows["relay.budget.warning"]) == warning


def named_in(row: str) -> set[str]:
    """The fields in the last column; `version` is named in its heading."""
    return {"version", *re.findall(r"`([a-z_]+)`", row.rpartition(" | ")[2])}
