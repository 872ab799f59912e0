"""Fixtures that serve the protocols hosted models speak, on the loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.openai_server import OpenAIServer


@pytest.fixture
def openai_server() -> Iterator[OpenAIServer]:
    """A server that answers "ok" until it is given a script; integration tests only."""
    with OpenAIServer() as server:
        yield server
