"""What holds for every test: which network it may use, whose keys, how many examples."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.soaks import SOAK

pytest_plugins = ["tests.servers.fixtures"]

INTEGRATION = Path(__file__).parent / "integration_tests"
LOOPBACK = ["127.0.0.1", "::1", "localhost"]

SERVERS = os.environ.get("RELAY_SERVERS") == "1"
# No deadline and no `too_slow`: a collection or a busy core is no failure. The examples are the
# same at every run, so that what breaks was broken by a change; a soak draws new ones.
PATIENT: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("default", max_examples=50, derandomize=True, **PATIENT)
hypothesis.settings.register_profile("soak", max_examples=5_000, **PATIENT)
hypothesis.settings.load_profile("soak" if SOAK else "default")


def pytest_configure() -> None:
    """No test spends money, sends a trace or leaves the machine, nor does a process it starts."""
    for name in os.environ.copy():
        if name.endswith("_API_KEY") or name.startswith(("OPENAI_", "LANGSMITH_", "LANGCHAIN_")):
            del os.environ[name]
        if name.lower() in {"http_proxy", "https_proxy", "all_proxy"}:
            del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    # What somebody's probes found out about hosts would decide modes here.
    os.environ["LANGCHAIN_RELAY_CACHE"] = tempfile.mkdtemp(prefix="langchain-relay-tests-")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sockets are off (pyproject.toml); integration tests may use loopback."""
    if not SERVERS:
        left_out = [item for item in items if item.get_closest_marker("servers")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("servers")]
    for item in items:
        if INTEGRATION in item.path.parents:
            item.add_marker(pytest.mark.allow_hosts(LOOPBACK))
        if item.get_closest_marker("gguf"):
            item.add_marker(pytest.mark.xdist_group("gguf"))


@pytest.fixture(autouse=True)
def closed_breakers() -> Iterator[None]:
    """The breakers are the process's, and ports of the loopback are used again."""
    yield
    from langchain_relay.delegates.breaker import BREAKERS

    BREAKERS.forget()


@pytest.fixture(autouse=True, scope="session")
def checked_events() -> Iterator[None]:
    """Every event that any test brings about is as its schema says, and JSON-able."""
    from jsonschema import Draft202012Validator

    from langchain_relay import answer, events, messages, schema

    validator = Draft202012Validator(events.json_schema())

    def checked(event: Any) -> Iterator[tuple[schema.EventName, dict[str, Any]]]:
        for name, data in schema.wire_events(event):
            validator.validate({"type": name, **data})
            parsed = events.parse_event(data, name)
            assert parsed.model_dump(exclude={"type"}) == data
            assert not parsed.model_extra, f"{name}: {parsed.model_extra} is not documented"
            yield name, data

    with pytest.MonkeyPatch.context() as patch:
        for module in (answer, messages):
            patch.setattr(module, "wire_events", checked)
        yield


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of random weights (`tests/ggufs.py`) with a plain KV cache."""
    from tests import ggufs

    return ggufs.write_llama(tmp_path_factory.mktemp("ggufs") / "tiny-llama.gguf")


@pytest.fixture(scope="session")
def tiny_mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a recurrent state, which cannot be cut."""
    from tests import ggufs

    return ggufs.write_mamba(tmp_path_factory.mktemp("ggufs") / "tiny-mamba.gguf")


@pytest.fixture(scope="session")
def tiny_hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a recurrent layer and an attention layer."""
    from tests import ggufs

    return ggufs.write_hybrid(tmp_path_factory.mktemp("ggufs") / "tiny-hybrid.gguf")


@pytest.fixture(scope="session")
def tiny_swa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a layer that sees a window of 16 tokens."""
    from tests import ggufs

    return ggufs.write_swa(tmp_path_factory.mktemp("ggufs") / "tiny-swa.gguf")
