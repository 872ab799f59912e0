"""Which tokenizer belongs to which model, and that none is ever downloaded."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path

import openai
import pytest
import quicktok
import tiktoken
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate, tokenizers
from langchain_relay.delegates.tokenizers import (
    TOKENIZERS,
    check_tokenizer,
    rule_for,
    vocabulary_of,
)
from langchain_relay.engine.values import Attempt
from langchain_relay.errors import DelegateError, MissingExtra, UsageMistake


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No encoding is loaded, and tiktoken's cache is empty."""
    monkeypatch.setattr(tokenizers, "_known", {})
    monkeypatch.setattr(tokenizers, "_broken", set())
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))


def without_quicktok(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_has_quicktok", lambda: False)


# --- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-5-mini", "o200k_base"),
        ("gpt-5.1", "o200k_base"),
        ("openai/gpt-4o-2024-08-06", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("o3", "o200k_base"),
        ("o4-mini-2025-04-16", "o200k_base"),
        ("ft:gpt-4o-mini:org::id", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo-2024-04-09", "cl100k_base"),
        ("gpt-3.5-turbo-instruct", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("davinci-002", "cl100k_base"),
        ("openai/gpt-oss-120b", "o200k_harmony"),
        ("gpt-oss:20b", "o200k_harmony"),
        ("llama-3.3-70b-versatile", "llama3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3"),
        ("meta-llama/Meta-Llama-3-8B", "llama3"),
        ("accounts/fireworks/models/llama-v3p1-8b-instruct", "llama3"),
        ("llama3.2:1b", "llama3"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("qwen3:0.6b", "qwen3"),
        ("qwen/qwen3-32b", "qwen3"),
        ("Qwen3-Coder-30B-A3B-Instruct", "qwen3"),
    ],
)
def test_a_model_has_its_encoding(model: str, encoding: str) -> None:
    rule = rule_for(model)
    assert rule is not None
    assert rule.encoding == encoding


@pytest.mark.parametrize(
    "model",
    [
        *("claude-haiku-4-5", "gemini-2.5-flash", "mistral-small", "deepseek-chat", "kimi-k2"),
        *("gpt-6", "gpt-50", "o10", "llama-4-scout", "llama-3.4-1b", "llama-30b", "llama2:7b"),
        *("qwen-plus", "qwen3-max", "qwen3.5-9b", "qwen2.5-7b", "deepseek-r1-distill-llama-8b"),
        *("gpt2", "smollm2-135m", "my-deployment", ""),
    ],
)
def test_a_model_nobody_knows_has_none(model: str) -> None:
    assert rule_for(model) is None
    assert vocabulary_of(model) is None


def test_openai_models_have_what_tiktokens_own_table_says() -> None:
    for model in ("gpt-5", "gpt-4o", "gpt-4.1", "o1", "gpt-4", "gpt-3.5-turbo", "gpt-oss-20b"):
        rule = rule_for(model)
        assert rule is not None
        assert rule.encoding == tiktoken.encoding_name_for_model(model)


def test_every_row_says_where_it_is_from() -> None:
    assert all(rule.source and rule.read for rule in TOKENIZERS)


# --- at hand, never downloaded ------------------------------------------------------------------


@functools.cache
def tiktoken_file(encoding: str, tokens: int) -> bytes:
    """What tiktoken downloads, made of what quicktok brings along."""
    spelled = quicktok.get_encoding(encoding).decode_single_token_bytes
    lines = (base64.b64encode(spelled(i)) + b" %d\n" % i for i in range(tokens))
    return b"".join(lines)


def put_tiktoken_file(folder: Path, data: bytes) -> None:
    (folder / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").write_bytes(data)


def test_a_file_in_tiktokens_cache_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_quicktok(monkeypatch)
    assert vocabulary_of("gpt-4") is None
    put_tiktoken_file(tmp_path, tiktoken_file("cl100k_base", 100_256))
    vocabulary = vocabulary_of("gpt-4")
    assert vocabulary is not None
    assert not vocabulary.loaded
    assert vocabulary.encode("blue light") == [12481, 3177]
    again = vocabulary_of("gpt-4")
    assert again is not None
    assert again.loaded


def test_a_broken_file_is_neither_used_nor_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_quicktok(monkeypatch)
    monkeypatch.setattr("tiktoken.load.read_file", lambda *_: pytest.fail("a download"))
    put_tiktoken_file(tmp_path, tiktoken_file("cl100k_base", 100_256)[:-10])
    assert vocabulary_of("gpt-4") is None
    assert len(list(tmp_path.iterdir())) == 1, "tiktoken would have removed it"


def test_an_empty_cache_name_means_that_tiktoken_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_quicktok(monkeypatch)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert vocabulary_of("gpt-4") is None


def test_the_default_folder_is_tiktokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", lambda path: str(path).encode())
    from tiktoken.load import read_file_cached

    read_file_cached("https://host/file")
    (kept,) = tmp_path.rglob(hashlib.sha1(b"https://host/file").hexdigest())
    assert kept.parent == tokenizers._tiktoken_folder()


def test_else_quicktok_is_used() -> None:
    vocabulary = vocabulary_of("gpt-5-mini")
    assert vocabulary is not None
    text = "blue <|endoftext|> light"
    assert vocabulary.encode(text) == quicktok.get_encoding("o200k_base").encode_ordinary(text)


def test_both_packages_count_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    with_quicktok = vocabulary_of("gpt-4")
    assert with_quicktok is not None
    counted = with_quicktok.encode(text)
    monkeypatch.setattr(tokenizers, "_known", {})
    without_quicktok(monkeypatch)
    put_tiktoken_file(tmp_path, tiktoken_file("cl100k_base", 100_256))
    with_tiktoken = vocabulary_of("gpt-4")
    assert with_tiktoken is not None
    assert list(with_tiktoken.encode(text)) == list(counted)


def test_a_package_that_is_broken_is_not_at_hand_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("quicktok.get_encoding", broken)
    vocabulary = vocabulary_of("gpt-5-mini")
    assert vocabulary is not None
    with pytest.raises(DelegateError, match="o200k_base could not be loaded: OSError"):
        vocabulary.load()
    assert vocabulary_of("gpt-5-mini") is None


# --- the user's own -----------------------------------------------------------------------------


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def attempt(model: str | None = None) -> Attempt:
    messages = (SystemMessage("Be kind."), HumanMessage("Why?"))
    return Attempt(messages, "", 8, model=model)


CLIENT = openai.OpenAI(api_key="k", base_url="http://127.0.0.1:9/v1")


def test_a_function_wins_over_everything() -> None:
    delegate = OpenAIDelegate(CLIENT, model="gpt-5-mini", tokenizer=letters)
    vocabulary = delegate.vocabulary()
    assert vocabulary is not None
    assert vocabulary.count("abc") == 3


def test_a_name_stands_for_an_encoding() -> None:
    delegate = OpenAIDelegate(CLIENT, model="my-deployment", tokenizer="o200k_base")
    vocabulary = delegate.vocabulary()
    assert vocabulary is not None
    assert vocabulary.count("blue light") == 2


def test_a_chat_models_own_counter_is_taken() -> None:
    chat = FakeListChatModel(responses=["x"], custom_get_token_ids=letters)
    vocabulary = ChatModelDelegate(chat).vocabulary()
    assert vocabulary is not None
    assert vocabulary.count("abc") == 3


def test_a_renamed_model_has_another_tokenizer() -> None:
    delegate = OpenAIDelegate(CLIENT, model="gpt-5-mini")
    assert delegate.vocabulary("claude-haiku-4-5") is None
    assert delegate.vocabulary("gpt-4") is not None


@pytest.mark.parametrize("wrong", ["o300k", 5, list, ["a"]])
def test_what_is_no_tokenizer_is_refused(wrong: object) -> None:
    with pytest.raises(UsageMistake, match="pass a function from a text to token ids"):
        check_tokenizer(wrong)


def test_an_encoding_that_is_not_at_hand_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without_quicktok(monkeypatch)
    with pytest.raises(MissingExtra, match=r"langchain-relay\[tokenizers\]"):
        OpenAIDelegate(CLIENT, model="m", tokenizer="qwen3")


@pytest.mark.parametrize("wrong", [lambda text: 1 / 0, lambda text: 7])
def test_a_function_that_fails_is_the_delegates_failure(wrong: object) -> None:
    vocabulary = vocabulary_of("m", wrong)  # type: ignore[arg-type]  # what users do
    assert vocabulary is not None
    with pytest.raises(DelegateError, match="returns a list of token ids"):
        vocabulary.count("a")


# --- the input side of a reservation --------------------------------------------------------------


def test_an_input_is_counted_where_that_can_be() -> None:
    known = OpenAIDelegate(CLIENT, model="gpt-5-mini")
    unknown = OpenAIDelegate(CLIENT, model="claude-haiku-4-5")
    assert unknown.input_bound(attempt()) == len("Be kind.Why?") + 2 * 16
    assert known.input_bound(attempt()) == 3 + 2 + 2 * 16 + 16
    assert known.input_bound(attempt("claude-haiku-4-5")) == unknown.input_bound(attempt())


def test_a_template_that_adds_a_text_of_its_own_is_allowed_for() -> None:
    plain = OpenAIDelegate(CLIENT, model="gpt-5-mini").input_bound(attempt())
    harmony = OpenAIDelegate(CLIENT, model="gpt-oss-20b").input_bound(attempt())
    assert harmony - plain == 160 - 16


def test_a_message_that_is_more_than_text_is_counted_with_all_it_has() -> None:
    call = {"name": "f", "args": {"x": "long " * 50}, "id": "1"}
    messages = (HumanMessage("Why?"), AIMessage("", tool_calls=[call]))
    delegate = OpenAIDelegate(CLIENT, model="gpt-5-mini")
    assert delegate.input_bound(Attempt(messages, "", 8)) > 50


def test_a_speakers_name_is_part_of_the_bound():
    delegate = OpenAIDelegate(CLIENT, model="m")
    named = Attempt((HumanMessage("Why?", name="n" * 64),), "", 8)
    assert delegate.input_bound(named) >= len("Why?") + 64 + 16
