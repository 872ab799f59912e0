"""The dialects, one module each, and which of them a path belongs to."""

from tests.faults.dialects.anthropic_messages import AnthropicMessages
from tests.faults.dialects.dialect import Asked, Dialect, Said
from tests.faults.dialects.gemini import Gemini
from tests.faults.dialects.ollama import Ollama
from tests.faults.dialects.openai_chat import OpenAIChat
from tests.faults.dialects.openai_completions import OpenAICompletions
from tests.faults.dialects.openai_relatives import Groq, Mistral
from tests.faults.dialects.openai_responses import OpenAIResponses

__all__ = ["DIALECTS", "RELATIVES", "Asked", "Dialect", "Said"]

DIALECTS: tuple[Dialect, ...] = (
    OpenAIChat(),
    OpenAIResponses(),
    OpenAICompletions(),
    AnthropicMessages(),
    Gemini(),
    Ollama(),
)

RELATIVES: tuple[Dialect, ...] = (Groq(), Mistral())
"""Told from OpenAI's chat by the beginning of the path; asked first."""
