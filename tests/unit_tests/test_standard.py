"""LangChain's standard unit tests, on scripted doubles."""

from __future__ import annotations

from typing import Any

from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_relay import RelayChatModel
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal


class TestRelayChatModel(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[RelayChatModel]:
        return RelayChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": ScriptedLocal("It is ", "<call>8</call>", "so."),
            "delegate": ScriptedDelegate("blue "),
        }

    @property
    def has_tool_calling(self) -> bool:
        return False  # `bind_tools` is there to say so


class TestRelayChatModelOverGguf(ChatModelUnitTests):
    """Construction over a real file loads nothing."""

    @property
    def chat_model_class(self) -> type[RelayChatModel]:
        return RelayChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smollm2-135m", "delegate": ScriptedDelegate("blue ")}

    @property
    def has_tool_calling(self) -> bool:
        return False  # `bind_tools` is there to say so
