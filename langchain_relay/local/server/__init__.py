"""The local model's role over HTTP, on an inference server that runs already."""

from langchain_relay.local.server.model import CompletionServerModel

__all__ = ["CompletionServerModel"]
