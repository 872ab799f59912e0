"""`langchain-relay doctor`: is all there that a relay needs, and how does the host continue?"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from langchain_relay.delegates.probe import Probed, Probing
from langchain_relay.delegates.resolve import resolve_delegate
from langchain_relay.engine.events import Decode
from langchain_relay.engine.values import Sampling, Turn
from langchain_relay.errors import RelayError
from langchain_relay.local import LlamaCppModel, models
from langchain_relay.local.threads import usable_cores

if TYPE_CHECKING:
    from rich.console import Console

SPEED_TOKENS = 48
COMPILERS = ("c++", "g++", "clang++", "cl")
COLORS = {"ok": "green", "note": "yellow", "wrong": "red"}
MEANINGS = {
    "literal": "continues a begun answer as it stands",
    "echo": "continues a begun answer and repeats it first; the repetition is dropped",
    "restart": "starts the answer again, so it is asked in words (instruct)",
    "reject": "refuses a begun answer, so it is asked in words (instruct)",
}


State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, whether it is well, and what was found."""

    what: str
    state: State
    found: str


def examine(model: str, delegate: str | None) -> Iterator[Finding]:
    """Look at the local side, then at the hosted one if it is named; each finding as it comes."""
    yield _compiler()
    yield _wheel()
    yield from _local(model)
    if delegate is not None:
        yield from _hosted(delegate)


def report(findings: Iterator[Finding], console: Console) -> bool:
    """Print the findings as they come; whether nothing is wrong."""
    table = Table(show_header=False, box=None, pad_edge=False)
    well = True
    with console.status("looking ..."):
        for finding in findings:
            color = COLORS[finding.state]
            table.add_row(finding.what, f"[{color}]{finding.state}[/{color}]", finding.found)
            well = well and finding.state != "wrong"
    console.print(table)
    return well


def _compiler() -> Finding:
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        return Finding("compiler", "note", "none found; llama-cpp-python needs one to install")
    return Finding("compiler", "ok", Path(found).name)


def _wheel() -> Finding:
    try:
        return Finding("llama-cpp-python", "ok", version("llama-cpp-python"))
    except PackageNotFoundError:
        return Finding("llama-cpp-python", "wrong", "missing: pip install llama-cpp-python")


def _local(model: str) -> Iterator[Finding]:
    try:
        path = models.resolve(model)
    except RelayError as error:
        yield Finding("model file", "wrong", str(error))
        return
    yield Finding("model file", "ok", f"{path.name}, {path.stat().st_size / 1e6:,.0f} MB")
    yield Finding("decode threads", "ok", f"{usable_cores()}, as many as there are cores to use")
    try:
        yield from _loaded(model)
    except RelayError as error:
        yield Finding("loads", "wrong", str(error))


def _loaded(model: str) -> Iterator[Finding]:
    question = [Turn("user", "Count from 1 upwards, one number per line.")]
    started = time.perf_counter()
    with LlamaCppModel(model, n_ctx=1024, max_concurrency=1) as local:
        session = local.open(question, Sampling(temperature=0)).result()
        step = session.decode(Decode()).result()
        wrote_first = time.perf_counter()
        yield Finding("loads", "ok", f"first token after {wrote_first - started:.1f} s")
        tags = "with" if session.thinking else "without"
        yield Finding("chat template", "ok", f"{tags} <think> tags")
        tokens = 0
        while tokens < SPEED_TOKENS and not step.eog:
            step = session.decode(Decode((step.id,))).result()
            tokens += 1
        speed = tokens / (time.perf_counter() - wrote_first)
        yield Finding("speed", "ok", f"{speed:.0f} tokens per second, one chat, greedy")
        session.close()


def _hosted(name: str) -> Iterator[Finding]:
    try:
        delegate = resolve_delegate(name)
        yield Finding("hosted model", "ok", f"{delegate.model}, shown a draft by {delegate.mode!r}")
        if isinstance(delegate, Probing):
            yield _verdict(delegate.probe(), resolve_delegate(name).mode)
    except RelayError as error:
        yield Finding("hosted model", "wrong", str(error))


def _verdict(probed: Probed, mode: str) -> Finding:
    state: State = "ok" if probed.verdict in {"literal", "echo"} else "note"
    meaning = MEANINGS[probed.verdict]
    return Finding("probe", state, f"{probed.verdict}: {meaning}; the mode is {mode!r} from now on")
