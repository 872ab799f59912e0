"""The pages of docs/ say what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from langchain_relay.delegates.hosts import HOSTS
from langchain_relay.delegates.reasoning import REASONING

ROOT = Path(__file__).parents[2]
HOSTED = ROOT / "docs" / "hosted-models.md"
TEXT = HOSTED.read_text(encoding="utf-8")


def blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_tables_of_hosts_are_those_of_the_code():
    filled = runpy.run_path(str(ROOT / "scripts" / "hosts_table.py"))["filled"]
    assert filled(TEXT) == TEXT, "scripts/hosts_table.py brings them together"
    names = [rule.name for rule in HOSTS] + [rule.name for rule in REASONING]
    assert [name for name in names if f"| {name} |" not in TEXT] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_every_relative_link_of_a_page_leads_somewhere(page: Path):
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link.split("#")[0]).exists()] == []


@pytest.mark.parametrize("name", ["hosted-models", "local-models", "budgets", "prices"])
def test_what_a_page_builds_can_be_built(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    for key in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(key, "none")
    names: dict[str, Any] = {}
    for code in blocks(ROOT / "docs" / f"{name}.md"):
        if "UpdatePrices" not in code:  # it fetches
            asking_nobody = re.sub(r"^( *)\w+\.invoke\(.*", r"\1pass", code, flags=re.MULTILINE)
            exec(compile(asking_nobody, name, "exec"), names)
