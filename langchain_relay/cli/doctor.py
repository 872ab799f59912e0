"""`langchain-relay doctor`: is all there that a relay needs, and how does the host continue?

Nothing is sent unless a hosted model is named.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr
from rich.table import Table
from rich.text import Text

from langchain_relay.delegates.chat_model import ChatModelDelegate
from langchain_relay.delegates.probe import BEGUN, Probed, Probing, kept
from langchain_relay.delegates.resolve import resolve_delegate
from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.engine.events import Decode
from langchain_relay.engine.values import Delegate, Sampling, Turn
from langchain_relay.errors import MissingExtra, RelayError, UsageMistake
from langchain_relay.local import LlamaCppModel, models
from langchain_relay.local.threads import usable_cores
from langchain_relay.prices import PriceBook

if TYPE_CHECKING:
    from rich.console import Console

SPEED_TOKENS = 48
REPLY_CHARS = 60
WHAT_WIDTH = 16
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


def examine(model: str, delegate: str | None, base_url: str | None = None) -> Iterator[Finding]:
    """Look at the local side, then at the hosted one if it is named; each finding as it comes."""
    yield _compiler()
    yield _wheel()
    yield from _local(model)
    if delegate is not None:
        yield from _hosted(delegate, base_url)
    else:
        yield from _verdicts()


def report(findings: Iterator[Finding], console: Console) -> bool:
    """Print each finding as it comes; whether nothing is wrong."""
    well = True
    with console.status("looking ..."):
        for finding in findings:
            console.print(_row(finding))
            well = well and finding.state != "wrong"
    return well


def _row(finding: Finding) -> Table:
    row = Table.grid(padding=(0, 2), pad_edge=False)
    row.add_column(width=WHAT_WIDTH)
    row.add_column(width=max(map(len, COLORS)))
    row.add_column(overflow="fold")
    # Text, not markup: messages have brackets, such as langchain-relay[cli].
    row.add_row(finding.what, Text(finding.state, COLORS[finding.state]), Text(finding.found))
    return row


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
    if model.startswith(("http://", "https://")):
        found = (
            f"{model} is a server, and only models of this process are looked at here; "
            f"langchain-relay chat --model {model} asks it"
        )
        yield Finding("model file", "wrong", found)
        return
    try:
        path = models.resolve(model)
    except RelayError as error:
        yield Finding("model file", "wrong", str(error))
        return
    yield Finding("model file", "ok", f"{path.name}, {path.stat().st_size / 1e6:,.0f} MB")
    yield _threads()
    try:
        yield from _loaded(model)
    except Exception as error:  # noqa: BLE001 - a library that does not load has errors of its own
        yield Finding("loads", "wrong", _said(error))


def _threads() -> Finding:
    cores, busy = usable_cores(), os.getloadavg()[0]
    found = f"{cores}, as many as there are cores to use"
    if busy < cores:
        return Finding("decode threads", "ok", found)
    return Finding(
        "decode threads",
        "note",
        f"{found}; but the load is {busy:.1f}: others compute here, too, and programs that "
        "together have more threads than cores are many times slower",
    )


def _loaded(model: str) -> Iterator[Finding]:
    question = [Turn("user", "Count from 1 upwards, one number per line.")]
    started = time.perf_counter()
    with LlamaCppModel(model, n_ctx=1024, max_concurrency=1) as local:
        session = local.open(question, Sampling(temperature=0)).result()
        step = session.decode(Decode()).result()
        wrote_first = time.perf_counter()
        yield Finding("loads", "ok", f"first token after {wrote_first - started:.1f} s")
        tags = "with" if session.thinking else "without"
        yield Finding("chat template", "ok", f"in the file, {tags} <think> tags")
        tokens = 0
        while tokens < SPEED_TOKENS and not step.eog:
            step = session.decode(Decode((step.id,))).result()
            tokens += 1
        speed = tokens / (time.perf_counter() - wrote_first)
        yield Finding("speed", "ok", f"{speed:.0f} tokens per second, one chat, greedy")
        session.close()


# --- the hosted side ----------------------------------------------------------------------------


def _hosted(name: str, base_url: str | None) -> Iterator[Finding]:
    try:
        delegate = _delegate(name, base_url)
    except RelayError as error:
        yield Finding("hosted model", "wrong", str(error))
        return
    where = delegate.fingerprint.get("base_url")
    yield Finding("hosted model", "ok", f"{delegate.model} at {where or 'an address of its own'}")
    yield _price(delegate.model, where)
    if not isinstance(delegate, Probing):
        yield Finding("mode", "ok", f"{delegate.mode!r}")
        return
    try:
        probed = delegate.probe()
    except RelayError as error:
        yield Finding("probe", "wrong", f"{error} (asked at {where}; nothing was kept)")
    else:
        yield from _probed(probed, _delegate(name, base_url).mode)
        if probed not in kept():
            found = "not kept: no file can be written; LANGCHAIN_RELAY_CACHE names another folder"
            yield Finding("verdict", "note", found)


def _delegate(name: str, base_url: str | None) -> Delegate:
    """The hosted model that is named, or one of that name on a server of the user's own.

    Raises:
        RelayError: it cannot be set up.
    """
    if base_url is None:
        return resolve_delegate(name)
    provider, _, model = name.partition(":")
    if provider != "openai" or not model:
        raise UsageMistake(
            f"--base-url is for a server that speaks OpenAI's protocol: write --delegate "
            f"openai:MODEL, not {name!r}"
        )
    try:
        from langchain_openai import ChatOpenAI
    except ImportError as error:
        raise MissingExtra("--base-url needs langchain-openai: pip install it") from error
    key = SecretStr(os.environ.get("OPENAI_API_KEY", "none"))  # one's own server may want none
    return ChatModelDelegate(ChatOpenAI(model=model, base_url=base_url, api_key=key))


def _price(model: str, base_url: str | None) -> Finding:
    price = PriceBook(None).find(model, base_url=base_url)
    if price is None:
        return Finding(
            "price",
            "note",
            f'none known: a budget in US dollars needs prices={{"{model}": (input, output)}}, '
            "US dollars per million tokens; zero for a server of your own",
        )
    million = 1_000_000
    read, wrote = price.worst_nanousd(million, 0), price.worst_nanousd(0, million)
    found = f"up to {read / NANOUSD_PER_USD:g} USD per million input tokens, "
    return Finding("price", "ok", found + f"{wrote / NANOUSD_PER_USD:g} output; {price.source}")


def _probed(probed: Probed, mode: str) -> Iterator[Finding]:
    state: State = "ok" if probed.verdict in {"literal", "echo"} else "note"
    yield Finding("probe", state, f"{probed.verdict}: {MEANINGS[probed.verdict]}")
    yield Finding("its reply", state, f"{probed.reply.strip()[:REPLY_CHARS]!r} after {BEGUN!r}")
    yield Finding("mode", "ok", f"{mode!r} from now on, unless you give mode=")


def _verdicts() -> Iterator[Finding]:
    for probed in kept():
        where = probed.base_url or "an address of its own"
        found = f"{probed.model} at {where}: {probed.verdict} in {probed.mode} mode, {probed.day}"
        if probed.package == version("langchain-relay"):
            yield Finding("verdict kept", "ok", found)
        else:
            yield Finding("verdict kept", "note", f"{found}, by {probed.package}: probe again")


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, RelayError) else f"{type(error).__name__}: {error}"
