"""The benchmarks run: smallest counts, two topics with a real GGUF and one without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOPICS = ("overhead", "resume", "chats")
TIMEOUT_S = 280


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.bench", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    ran = run(*TOPICS, "--quick", "--rounds", "2", "--threads", "1", "--out", str(out))
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert "bounds met" in ran.stdout
    (written,) = out.glob("bench-quick-overhead-resume-chats-*.json")
    return json.loads(written.read_text(encoding="utf-8"))


@pytest.mark.gguf
def test_every_row_has_a_number_of_every_round(report):
    rows = report["rows"]

    assert {row["topic"] for row in rows} == set(TOPICS)
    assert all(len(row["values"]) == 2 for row in rows)
    assert all(value > 0 for row in rows for value in row["values"])


@pytest.mark.gguf
def test_ratios_come_with_their_range_and_bounds_with_a_verdict(report):
    compared = [row for row in report["rows"] if row["against"]]
    bounded = [row for row in report["rows"] if row["bound"]]

    assert len(compared) > 5
    for row in compared:
        low, high = row["ratio_range"]
        assert low <= row["ratio"] <= high
    assert {row["verdict"] for row in bounded} <= {"met", "not met", "failure"}
    missed = {row["name"] for row in bounded if row["verdict"] != "met"}
    assert set(report["missed"]) == missed


@pytest.mark.gguf
def test_the_report_says_what_was_run_and_on_what(report):
    assert report["plan"]["rounds"] == 2
    assert report["plan"]["threads"] == 1
    assert report["versions"]["llama-cpp-python"]
    assert report["machine"]["cores"]


def test_the_ledgers_are_measured_without_a_model(tmp_path):
    ran = run("ledgers", "--quick", "--rounds", "2", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr + ran.stdout
    (written,) = tmp_path.glob("bench-quick-ledgers-*.json")
    rows = json.loads(written.read_text(encoding="utf-8"))["rows"]
    bounds = {row["name"].removeprefix("reserve and settle: "): row["bound"] for row in rows}
    assert {name: bound for name, bound in bounds.items() if bound} == {
        "memory": "≤ 20",
        "SQLite": "≤ 1",
        "Redis": "≤ 1",
        "PostgreSQL": "≤ 3",
    }
    for row in rows:
        assert len(row["values"]) == 2 or row["verdict"] == "not run"
        assert all(value > 0 for value in row["values"])


def test_prompts_are_priced_with_and_without_caches(tmp_path):
    ran = run("prompt_cost", "--quick", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr + ran.stdout
    (written,) = tmp_path.glob("*.json")
    rows = json.loads(written.read_text(encoding="utf-8"))["rows"]

    assert all("emulated" in row["emulated"] for row in rows)
    assert all(row["calls"] == 2 and row["input_tokens"] > 500 for row in rows)
    cached = {row["name"]: row["cached_input_tokens"] for row in rows}
    for name, tokens in cached.items():
        assert (tokens > 1_000) == name.endswith("as it is"), name


@pytest.mark.gguf
def test_added_time_is_the_difference_to_the_bare_client(tmp_path):
    ran = run("added_time", "--quick", "--threads", "1", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr + ran.stdout
    (written,) = tmp_path.glob("*.json")
    rows = json.loads(written.read_text(encoding="utf-8"))["rows"]

    assert len(rows) == 12
    for bare, relay, added in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert added["values"][0] == pytest.approx(
            relay["values"][0] - bare["values"][0], rel=1e-2, abs=1e-2
        )
        if "first token" in bare["name"]:
            assert bare["values"][0] > 5  # the server's delay
        assert added["bound"]


def test_an_unknown_topic_is_named_with_those_there_are():
    ran = run("decoed")

    assert ran.returncode == 2
    assert "decoed" in ran.stderr
    assert "decode" in ran.stderr
