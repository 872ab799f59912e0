"""The metrics of `OpenTelemetryHandler`, as the SDK collects them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import FakeListChatModel
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from langchain_relay import RelayChatModel
from langchain_relay.callbacks.otel import OpenTelemetryHandler
from langchain_relay.errors import MissingExtra
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal
from tests.unit_tests.test_costs import Hosted

TOKENS, DURATION = "gen_ai.client.token.usage", "gen_ai.client.operation.duration"
COST, UNPRICED = "langchain_relay.cost", "langchain_relay.unpriced_calls"


class Clock:
    """Each look at it is half a second later."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def __call__(self) -> float:
        self.at_s += 0.5
        return self.at_s


class Metrics:
    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def handler(self, **options: Any) -> OpenTelemetryHandler:
        return OpenTelemetryHandler(self.provider, clock=Clock(), **options)

    def points(self, name: str) -> list[Any]:
        data: Any = self.reader.get_metrics_data()
        metrics = [
            metric
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        return [
            point for metric in metrics if metric.name == name for point in metric.data.data_points
        ]

    def units(self) -> dict[str, str]:
        data: Any = self.reader.get_metrics_data()
        (scope,) = data.resource_metrics[0].scope_metrics
        return {metric.name: metric.unit for metric in scope.metrics}


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    found = Metrics()
    yield found
    found.provider.shutdown()


ATTRIBUTES = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5-mini",
    "gen_ai.response.model": "gpt-5-mini",
}


def by_type(points: list[Any]) -> dict[str, Any]:
    return {point.attributes["gen_ai.token.type"]: point for point in points}


def test_tokens_duration_and_cost_are_recorded_once_each(metrics: Metrics):
    handler = metrics.handler()
    for _ in range(2):
        Hosted().invoke("?", {"callbacks": [handler]})
    tokens = by_type(metrics.points(TOKENS))
    assert {kind: (point.sum, point.count) for kind, point in tokens.items()} == {
        "input": (200, 2),
        "output": (20, 2),
    }
    assert tokens["input"].attributes == {**ATTRIBUTES, "gen_ai.token.type": "input"}
    (duration,) = metrics.points(DURATION)
    assert (duration.sum, duration.count) == (1.0, 2)
    assert duration.attributes == ATTRIBUTES
    (cost,) = metrics.points(COST)
    assert cost.value == pytest.approx(0.00009)
    assert cost.attributes == {**ATTRIBUTES, "langchain_relay.cost.estimated": False}
    assert metrics.points(UNPRICED) == []


def test_units_and_buckets_are_those_of_the_conventions(metrics: Metrics):
    Hosted().invoke("?", {"callbacks": [metrics.handler()]})
    assert metrics.units() == {TOKENS: "{token}", DURATION: "s", COST: "{USD}"}
    buckets = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
    assert by_type(metrics.points(TOKENS))["input"].explicit_bounds == (
        *buckets,
        *(4194304, 16777216, 67108864),
    )
    assert metrics.points(DURATION)[0].explicit_bounds == pytest.approx(
        (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    )


def test_a_failure_has_its_duration_and_its_type(metrics: Metrics):
    with pytest.raises(ConnectionError):
        Hosted(fails_after=0).invoke("?", {"callbacks": [metrics.handler()]})
    (duration,) = metrics.points(DURATION)
    assert duration.attributes == {**ATTRIBUTES, "error.type": "ConnectionError"}
    assert metrics.points(TOKENS) + metrics.points(COST) + metrics.points(UNPRICED) == []


def test_what_nobody_knows_is_counted_and_not_zero(metrics: Metrics):
    Hosted(provider="ollama").invoke("?", {"callbacks": [metrics.handler()]})
    assert metrics.points(COST) == []
    (unpriced,) = metrics.points(UNPRICED)
    assert unpriced.value == 1
    assert unpriced.attributes == {**ATTRIBUTES, "gen_ai.provider.name": "ollama"}


def test_an_answer_from_the_cache_is_no_operation(metrics: Metrics):
    model = Hosted(cache=InMemoryCache())
    for _ in range(3):
        model.invoke("?", {"callbacks": [metrics.handler()]})
    assert metrics.points(DURATION)[0].count == 1


@pytest.mark.parametrize(
    ("provider", "name"),
    [("google_genai", "gcp.gemini"), ("xai", "x_ai"), ("anthropic", "anthropic")],
)
def test_providers_have_their_well_known_names(metrics: Metrics, provider: str, name: str):
    Hosted(provider=provider).invoke("?", {"callbacks": [metrics.handler()]})
    assert metrics.points(DURATION)[0].attributes["gen_ai.provider.name"] == name


def test_a_model_without_usage_has_no_tokens(metrics: Metrics):
    FakeListChatModel(responses=["a"]).invoke("?", {"callbacks": [metrics.handler()]})
    assert metrics.points(TOKENS) == []
    assert metrics.points(DURATION)[0].count == 1


def test_a_relay_and_its_hosted_attempts_are_operations_of_their_own(metrics: Metrics):
    delegate = FailingDelegate(
        ConnectionError("gone"), then="blue ", usage=(12, 3), model="gpt-5-mini"
    )
    model = RelayChatModel(model=ScriptedLocal("a ", "<call>8</call>", "b"), delegate=delegate)
    model.invoke("?", {"callbacks": [metrics.handler()]})
    seen = [
        (point.attributes["gen_ai.provider.name"], point.attributes.get("error.type"))
        for point in metrics.points(DURATION)
    ]
    assert sorted(seen, key=str) == [
        ("langchain_relay", None),
        ("unknown", "DelegateError"),
        ("unknown", None),
    ]
    assert sum(point.value for point in metrics.points(COST)) == pytest.approx(9e-6)


def test_the_address_is_the_servers(metrics: Metrics):
    delegate = ScriptedDelegate("blue ", usage=(12, 3), model="gpt-5-mini")
    delegate.base_url = "https://models.example/v1"  # type: ignore[attr-defined]
    model = RelayChatModel(model=ScriptedLocal("a ", "<call>8</call>", "b"), delegate=delegate)
    model.invoke("?", {"callbacks": [metrics.handler()]})
    found = [
        (point.attributes.get("server.address"), point.attributes.get("server.port"))
        for point in metrics.points(DURATION)
    ]
    assert sorted(found, key=str) == [("models.example", 443), (None, None)]


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    with pytest.raises(MissingExtra, match=r"langchain-relay\[otel\]"):
        OpenTelemetryHandler()
