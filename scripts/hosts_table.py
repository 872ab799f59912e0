"""Writes the tables of hosts into docs/hosted-models.md, from the tables in the code.

    .venv/bin/python scripts/hosts_table.py

A test compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from langchain_relay.delegates.hosts import HOSTS, SERVERS, HostRule
from langchain_relay.delegates.reasoning import REASONING, ReasoningRule

PAGE = Path(__file__).parents[1] / "docs" / "hosted-models.md"


def filled(page: str) -> str:
    """The page with both tables as the code has them."""
    page = _between(page, "hosts", _hosts())
    return _between(page, "reasoning", _reasoning())


def _between(page: str, name: str, rows: Iterable[str]) -> str:
    table = "\n".join(rows)
    marked = re.compile(rf"(<!-- {name}:begin.*?-->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    return marked.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page)


def _hosts() -> Iterator[str]:
    yield "| host | recognised by | mode | read in | on |"
    yield "|---|---|---|---|---|"
    for rule in (*HOSTS, *SERVERS):
        yield _row(rule.name, _known_by(rule), _mode(rule), rule.source, str(rule.read))


def _mode(rule: HostRule) -> str:
    spelled = f" (`{rule.flag}`)" if rule.flag else ""
    return f"`{rule.mode}`{spelled}{', the reply repeats the draft' if rule.echoes else ''}"


def _reasoning() -> Iterator[str]:
    yield "| models | recognised by | what is set | read in |"
    yield "|---|---|---|---|"
    for rule in REASONING:
        said = {**rule.settings, **rule.body}
        settings = ", ".join(f"`{name}={value!r}`" for name, value in said.items())
        yield _row(rule.name, _known_by(rule), settings, rule.source)


def _known_by(rule: HostRule | ReasoningRule) -> str:
    known_by = [f"`{one}`" for one in (*sorted(rule.classes), *rule.addresses)]
    return ", ".join(known_by) or "nothing: say the mode"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
