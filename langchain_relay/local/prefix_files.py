"""Evaluated beginnings of prompts as files of one folder, bounded, for any number of processes.

Standard library only: what a payload means is the caller's business. A file is a cache entry and
no more, so nothing about it raises: what is damaged, foreign, gone or cannot be written is as if it
had never been saved. The folder should be private, because a checksum finds damage and no forgery.

A file's name has a hash of the key, the number of ids and a hash of the ids, so that a look-up
opens only files that begin as the prompt does. Its contents, integers little-endian:

    magic, version (4 bytes), key hash (32), number of ids (4), payload length (8),
    ids (4 each), payload, BLAKE2b-256 of all of this
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

logger = logging.getLogger(__name__)

MAGIC = b"RELAYPFX"
VERSION = 1
_HEADER = struct.Struct("<8sI32sIQ")
_HASH_BYTES = 32
_ID_BYTES = 4

STALE_S = 3600
"""Age at which an unfinished file is taken for a crashed process's and removed."""

_NAME = re.compile(r"(?P<key>[0-9a-f]{16})-(?P<n_ids>[0-9]{8,10})-[0-9a-f]{32}\.prefix")
_UNFINISHED = re.compile(_NAME.pattern + r"\.\w+\.tmp")


@dataclass(frozen=True, slots=True)
class Prefix:
    """A stored beginning.

    Attributes:
        n_ids: How many of the ids that were asked for it covers.
        payload: What was saved for them.
    """

    n_ids: int
    payload: bytes


class PrefixFiles:
    """A folder of payloads, each found again by the ids it was saved for.

    Args:
        folder: Made at the first `save`, for this user only.
        max_bytes: What all files together may take, those of other keys included. The files that
            were used the longest ago are deleted first.
        key: JSON-able facts on which a payload depends beside the ids. Files of another key are
            never found.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int, key: Mapping[str, object]) -> None:
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        facts = json.dumps({"version": VERSION, "key": dict(key)}, sort_keys=True)
        self._key_hash = _hash(facts.encode())
        self._told: set[str] = set()

    def find(self, ids: Sequence[int], *, longer_than: int = 0) -> Prefix | None:
        """The longest stored beginning of `ids`, which may be all of them, or `None`.

        One of `longer_than` ids or less is not worth reading.
        """
        packed = _packed(ids)
        for name in self._candidates(packed):
            if _n_ids(name) <= longer_than:
                break  # the longest come first
            payload = self._load(name, packed)
            if payload is not None:
                self._touch(name)
                return Prefix(_n_ids(name), payload)
        return None

    def save(self, ids: Sequence[int], payload: bytes | bytearray | memoryview) -> bool:
        """Store `payload` for `ids` in place of what was stored for them.

        Returns:
            Whether it is stored. It is not if `ids` is empty, if the file would be larger than
            `max_bytes`, or if it cannot be written; the latter is logged once.
        """
        packed = _packed(ids)
        header = _HEADER.pack(MAGIC, VERSION, self._key_hash, len(ids), memoryview(payload).nbytes)
        size = len(header) + len(packed) + memoryview(payload).nbytes + _HASH_BYTES
        if not ids or size > self._max_bytes:
            return False
        name = self._name(len(ids), _ids_hash(packed).hexdigest())
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(size, replacing=name)
            self._write(name, (header, packed, payload))
            self._make_room(0)  # other processes may have saved meanwhile
        except OSError as error:
            self._tell("save", f"cannot save evaluated prompts in {self._folder}: {error}")
            return False
        return True

    # --- names ----------------------------------------------------------------------------------

    def _name(self, n_ids: int, ids_hash: str) -> str:
        return f"{self._key_hash.hex()[:16]}-{n_ids:08d}-{ids_hash}.prefix"

    def _candidates(self, packed: bytes) -> list[str]:
        """Names of files for beginnings of the ids, the longest first."""
        names = {entry.name for entry in self._entries(_NAME)}
        longest = len(packed) // _ID_BYTES
        lengths = sorted({n for name in names if (n := _n_ids(name)) <= longest})
        wanted, hashed, done = [], _ids_hash(b""), 0
        for n in lengths:
            hashed.update(packed[done * _ID_BYTES : n * _ID_BYTES])
            done = n
            wanted.append(self._name(n, hashed.hexdigest()))
        return [name for name in reversed(wanted) if name in names]

    def _entries(self, pattern: re.Pattern[str]) -> Iterator[os.DirEntry[str]]:
        """Regular files whose whole name matches; none if the folder cannot be read."""
        try:
            with os.scandir(self._folder) as entries:
                found = [entry for entry in entries if pattern.fullmatch(entry.name)]
        except FileNotFoundError:
            return
        except OSError as error:
            self._tell("list", f"cannot look for evaluated prompts in {self._folder}: {error}")
            return
        for entry in found:
            with suppress(OSError):  # gone since
                if entry.is_file(follow_symlinks=False):
                    yield entry

    # --- reading --------------------------------------------------------------------------------

    def _load(self, name: str, packed: bytes) -> bytes | None:
        """The payload of a file that is whole and stands for the beginning of these ids."""
        try:
            with (self._folder / name).open("rb") as file:
                return self._parse(file, packed[: _n_ids(name) * _ID_BYTES])
        except FileNotFoundError:
            return None  # another process made room
        except _NotOurs as error:
            self._tell(name, f"{self._folder / name} is left alone: {error}")
        except _Damaged as error:
            self._tell(name, f"{self._folder / name} is removed: {error}")
            with suppress(OSError):
                (self._folder / name).unlink()
        except OSError as error:
            self._tell("read", f"cannot read evaluated prompts in {self._folder}: {error}")
        return None

    def _parse(self, file: BinaryIO, packed: bytes) -> bytes:
        header = file.read(_HEADER.size)
        payload_bytes = self._check_header(header, packed)
        # Before a damaged length makes us reserve that much memory.
        expected = len(header) + len(packed) + payload_bytes + _HASH_BYTES
        size = os.fstat(file.fileno()).st_size
        if size != expected:
            raise _Damaged(f"it has {size} bytes instead of {expected}")
        ids = file.read(len(packed))
        payload = file.read(payload_bytes)
        if file.read() != _hash(header, ids, payload):
            raise _Damaged("its checksum is wrong")
        if ids != packed:
            raise _Damaged("it was saved for other tokens than its name says")
        return payload

    def _check_header(self, header: bytes, packed: bytes) -> int:
        """The payload's length."""
        if len(header) < _HEADER.size:
            raise _Damaged(f"it ends after {len(header)} bytes")
        magic, version, key_hash, n_ids, payload_bytes = _HEADER.unpack(header)
        if magic != MAGIC:
            raise _NotOurs("it was not written by langchain-relay")
        if version != VERSION:
            raise _NotOurs(f"it has format version {version}; this is version {VERSION}")
        if key_hash != self._key_hash or n_ids * _ID_BYTES != len(packed):
            raise _Damaged("its header is not that of its name")
        return int(payload_bytes)

    def _touch(self, name: str) -> None:
        now = time.time_ns()  # the kernel's own time of a file may be milliseconds coarse
        with suppress(OSError):  # gone, or not ours to touch
            os.utime(self._folder / name, ns=(now, now))

    # --- writing --------------------------------------------------------------------------------

    def _write(self, name: str, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        handle, unfinished = tempfile.mkstemp(dir=self._folder, prefix=f"{name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                for part in (*parts, _hash(*parts)):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            Path(unfinished).replace(self._folder / name)
        except BaseException:
            with suppress(OSError):
                Path(unfinished).unlink()
            raise
        self._touch(name)

    def _make_room(self, needed: int, *, replacing: str = "") -> None:
        """Delete what was used the longest ago until `needed` bytes are free."""
        self._remove_unfinished()
        files = sorted(self._by_age(replacing))
        total = needed + sum(size for _, _, size in files)
        for _, name, size in files:
            if total <= self._max_bytes:
                return
            (self._folder / name).unlink(missing_ok=True)
            total -= size

    def _by_age(self, replacing: str) -> Iterator[tuple[int, str, int]]:
        for entry in self._entries(_NAME):
            with suppress(FileNotFoundError):
                if entry.name != replacing:
                    stat = entry.stat()
                    yield stat.st_mtime_ns, entry.name, stat.st_size

    def _remove_unfinished(self) -> None:
        for entry in self._entries(_UNFINISHED):
            with suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > STALE_S:
                    (self._folder / entry.name).unlink()

    def _tell(self, subject: str, message: str) -> None:
        if subject not in self._told:
            self._told.add(subject)
            logger.warning("%s", message)


class _NotOurs(Exception):
    """Somebody else's file under a name like ours."""


class _Damaged(Exception):
    """A file of ours that must not be used."""


def _n_ids(name: str) -> int:
    return int(name.split("-")[1])


def _packed(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids)


def _ids_hash(packed: bytes) -> blake2b:
    return blake2b(packed, digest_size=16)


def _hash(*parts: bytes | bytearray | memoryview) -> bytes:
    hashed = blake2b(digest_size=_HASH_BYTES)
    for part in parts:
        hashed.update(part)
    return hashed.digest()
