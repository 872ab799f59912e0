"""The command line as a user runs it: the demo over real parts, its help, its mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from importlib.metadata import version

import openai
import pytest

from langchain_relay.cli.stand_in import stand_in
from tests.servers.openai_server import OpenAIServer

DEMO_S = 240
DOCTOR_OF_NOTHING = ("doctor", "--model", "nothere.gguf")
"""Decodes nothing."""


def langchain_relay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from langchain_relay.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEMO_S, check=False)


@pytest.mark.gguf
@pytest.mark.xdist_group("gguf")
@pytest.mark.timeout(300)
def test_the_demo_relays_refuses_and_reports() -> None:
    done = langchain_relay("demo", "--max-tokens", "40")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    started = [line for line in lines if line.startswith("relay.call.started ")]
    finished = [line for line in lines if line.startswith("relay.call.finished ")]
    assert len(started) == len(finished) >= 1
    (denied,) = [line for line in lines if line.startswith("relay.call.denied ")]
    assert "needed, 0.000000001 USD left" in denied
    assert "stands in for one" in done.stdout
    assert "priced as gpt-5-mini" in done.stdout
    for row in ("spans", "calls", "local tokens", "delegated tokens", "cost", "alone"):
        assert any(row in line for line in lines)
    assert done.stdout.count("1 denied") == 1


@pytest.mark.gguf
@pytest.mark.xdist_group("gguf")
def test_the_stand_in_speaks_openais_protocol_and_continues_a_draft() -> None:
    with stand_in(seed=1, temperature=0.0) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="none")
        chunks = list(
            client.chat.completions.create(
                model="stand-in",
                messages=[
                    {"role": "user", "content": "Count from one to ten."},
                    {"role": "assistant", "content": "one, two, three, four,"},
                ],
                max_completion_tokens=4,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(base_url + "/models", data=json.dumps({}).encode())
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.startswith(" five")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help")])
def test_help_teaches(arguments: tuple[str, ...]) -> None:
    done = langchain_relay(*arguments)
    assert done.returncode == 0
    assert "demo" in done.stdout
    if "demo" in arguments:
        assert "OPENAI_API_KEY" in done.stdout
        assert "--budget-usd" in done.stdout


def test_the_version_needs_no_command() -> None:
    done = langchain_relay("--version")
    assert (done.returncode, done.stdout.strip()) == (0, version("langchain-relay"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "--delegate", "gpt-5-mini"), "gpt-5-mini"),
        (("demo", "--model", "smolm"), "smollm2-135m"),
        (("demo", "--delegate", "openai:gpt-5-mini", "--budget-usd", "much"), "much"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(arguments: tuple[str, ...], said: str) -> None:
    done = langchain_relay(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert said in done.stderr


@pytest.mark.gguf
def test_the_doctor_looks_at_both_sides_and_probes_the_named_one(monkeypatch, tmp_path) -> None:
    with OpenAIServer("mps over the sleepy dog") as server:
        monkeypatch.setenv("OPENAI_API_KEY", "test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("LANGCHAIN_RELAY_CACHE", str(tmp_path))
        done = langchain_relay("doctor", "--delegate", "openai:some-model")
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(server.requests) == 1
    found = {line.split("  ")[0].strip(): line for line in done.stdout.splitlines()}
    assert {"compiler", "llama-cpp-python", "model file", "loads", "chat template"} <= set(found)
    assert "tokens per second" in found["speed"]
    assert found["probe"].split()[1:3] == ["ok", "literal:"]
    assert "mps over the sleepy dog" in found["its reply"]
    assert "'prefill'" in found["mode"]
    assert 'prices={"some-model"' in " ".join(done.stdout.split())


def test_the_doctor_probes_a_server_of_one_s_own_and_lists_what_it_kept(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("LANGCHAIN_RELAY_CACHE", str(tmp_path))
    with OpenAIServer("The small brown fox") as server:
        hosted = ("--delegate", "openai:mine", "--base-url", server.base_url)
        done = langchain_relay(*DOCTOR_OF_NOTHING, *hosted)
        assert "restart" in done.stdout, done.stdout + done.stderr
        assert "Bearer none" in server.requests[0].headers.values()
    listed = langchain_relay(*DOCTOR_OF_NOTHING)
    assert len(server.requests) == 1
    (kept,) = [line for line in listed.stdout.splitlines() if line.startswith("verdict kept")]
    assert "mine" in kept
    gone = langchain_relay(*DOCTOR_OF_NOTHING, *hosted)
    assert "nothing was kept" in " ".join(gone.stdout.split())


def test_the_doctor_says_that_a_verdict_could_not_be_kept(monkeypatch, tmp_path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LANGCHAIN_RELAY_CACHE", str(tmp_path / "file"))
    with OpenAIServer("mps over the sleepy dog") as server:
        hosted = ("--delegate", "openai:mine", "--base-url", server.base_url)
        done = langchain_relay(*DOCTOR_OF_NOTHING, *hosted)
    said = " ".join(done.stdout.split())
    assert "literal: continues" in said, done.stderr
    assert "'instruct' from now on" in said
    assert "verdict note not kept" in said


def test_the_doctor_says_that_a_local_server_is_none_of_its_business() -> None:
    done = langchain_relay("doctor", "--model", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "chat --model http://127.0.0.1:9" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [("--base-url", "http://127.0.0.1:9"), ("--delegate", "x:y", "--base-url", "http://h")],
)
def test_an_address_goes_with_openai_s_protocol(arguments) -> None:
    done = langchain_relay(*DOCTOR_OF_NOTHING, *arguments)
    assert done.returncode in {1, 2}
    assert "openai:MODEL" in done.stdout + done.stderr


def test_the_doctor_says_what_is_wrong_and_sends_nothing_unasked() -> None:
    done = langchain_relay("doctor", "--model", "nothere.gguf")
    assert done.returncode == 1
    assert "wrong" in done.stdout
    assert "nothere.gguf" in done.stdout
    assert "hosted" not in done.stdout
