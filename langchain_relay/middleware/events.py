"""Relay events on a channel of their own in an agent's stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph.stream import ProtocolEvent, StreamChannel, StreamTransformer


class RelayTransformer(StreamTransformer):
    """Relay events of `stream_events(version="v3")`: `run.extensions["relay"]`, `custom:relay`."""

    required_stream_modes = ("custom",)

    def __init__(self, scope: tuple[str, ...] = ()) -> None:
        super().__init__(scope)
        self._scope = list(scope)
        self._events: StreamChannel[dict[str, Any]] = StreamChannel("relay")

    def init(self) -> dict[str, Any]:
        """See `StreamTransformer.init`."""
        return {"relay": self._events}

    def process(self, event: ProtocolEvent) -> bool:
        """See `StreamTransformer.process`."""
        params = event["params"]
        data = params.get("data")
        ours = isinstance(data, Mapping) and str(data.get("type", "")).startswith("relay.")
        if event["method"] == "custom" and params.get("namespace") == self._scope and ours:
            self._events.push(dict(data))
        return True
