"""What an import may load: nothing heavy, so that a user who never decodes never pays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SDKS = {"llama_cpp", "openai", "numpy", "tiktoken"}


def loaded_by(code: str) -> set[str]:
    """Names of all modules that a fresh Python has loaded after `code`."""
    code += "\nimport sys\nprint('loaded:', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_the_package_loads_nothing_heavy():
    heavy = SDKS | {"genai_prices", "langchain", "langchain_core", "torch"}
    assert not loaded_by("import langchain_relay") & heavy


def test_its_parts_load_no_sdk():
    parts = ("local", "delegates", "policies", "testing", "errors", "callbacks", "events", "prices")
    loaded = loaded_by("\n".join(f"import langchain_relay.{part}" for part in parts))
    assert not loaded & (SDKS | {"genai_prices", "langchain_relay.callbacks.otel"})


def test_the_engine_loads_no_langchain():
    assert "langchain_core" not in loaded_by("import langchain_relay.engine.drivers")


def test_a_model_is_constructed_without_llama_cpp():
    loaded = loaded_by(
        "from langchain_relay import RelayChatModel\n"
        "from langchain_relay.testing import ScriptedDelegate\n"
        "RelayChatModel(model='smollm2-135m', delegate=ScriptedDelegate('x'))\n"
    )
    assert "langchain_relay.chat_models" in loaded
    assert "llama_cpp" not in loaded
