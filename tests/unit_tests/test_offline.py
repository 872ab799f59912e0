"""The offline switch: what it refuses, what it lets through, and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_relay.engine.values import Sampling, Turn
from langchain_relay.errors import LocalModelError, ModelNotFound, Offline
from langchain_relay.local import CompletionServerModel, models
from langchain_relay.offline import VARIABLE, leaves_machine, offline, refuse_offline


@pytest.mark.parametrize("value", ["1", "true", "YES", "on", " 1 "])
def test_it_is_on(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert offline()


@pytest.mark.parametrize("value", [None, "", "0", "false", "No", "off"])
def test_it_is_off(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert not offline()
    refuse_offline("anything")


@pytest.mark.parametrize(
    ("address", "leaves"),
    [
        ("http://127.0.0.1:8080/v1", False),
        ("http://127.3.2.1", False),
        ("http://localhost:11434", False),
        ("http://[::1]:8080", False),
        ("https://api.openai.com/v1", True),
        ("http://192.168.1.2:8080", True),
        ("http://10.0.0.1", True),
        ("http://0.0.0.0:80", True),
        ("http://localhost.example.com", True),
        ("http://127.0.0.1.example.com", True),
        ("https://user:pass@api.example.com", True),
        ("http://127.0.0.1@api.example.com", True),
        ("", True),
        ("api.example.com", True),
        (None, True),
    ],
)
def test_an_address_is_on_this_machine_or_it_is_not(address: str | None, leaves: bool) -> None:
    assert leaves_machine(address) is leaves


def test_what_would_leave_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(Offline, match=rf"offline: a probe would leave .* {VARIABLE} is set"):
        refuse_offline("a probe", "https://api.openai.com")
    refuse_offline("a probe", "http://127.0.0.1")


def test_a_download_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("a download"))
    with pytest.raises(ModelNotFound, match=f"hf:o/r/f.gguf.*{VARIABLE} is set"):
        models.resolve("hf:o/r/f.gguf")


@pytest.mark.parametrize("ask", ["open", "count"])
def test_a_model_server_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, ask: str) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    model = CompletionServerModel("http://gpu-box:8080")
    calls: dict[str, Any] = {
        "open": lambda: model.open([Turn("user", "x")], Sampling()),
        "count": lambda: model.count("x"),
    }
    with pytest.raises(LocalModelError, match="'gpu-box:8080' is asked would leave this machine"):
        calls[ask]()
    assert model.requests == 0
