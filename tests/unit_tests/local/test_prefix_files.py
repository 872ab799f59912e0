"""A bounded folder of evaluated beginnings: found by ids, never wrong, never in the way."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.local import prefix_files
from langchain_relay.local.prefix_files import Prefix, PrefixFiles

KEY = {"model": "tiny", "adapter": None, "llama_cpp": "0.3.36"}
PAYLOAD = bytes(range(200))
ROOT = Path(__file__).parents[3]


def store(folder, *, max_bytes=100_000, key=KEY):
    return PrefixFiles(folder, max_bytes=max_bytes, key=key)


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def size_of_one(tmp_path):
    """Bytes of a file of three ids and `PAYLOAD`."""
    store(tmp_path / "measured").save([1, 2, 3], PAYLOAD)
    return only_file(tmp_path / "measured").stat().st_size


# --- what is found ------------------------------------------------------------------------------


def test_the_longest_stored_beginning_is_found(tmp_path):
    files = store(tmp_path)
    for ids in ([1], [1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 4, 5, 6]):
        assert files.save(ids, repr(ids).encode())
    assert files.find([1, 2, 3, 4, 5]) == Prefix(3, b"[1, 2, 3]")
    assert files.find([1, 2, 3]) == Prefix(3, b"[1, 2, 3]")
    assert files.find([1, 2]) == Prefix(1, b"[1]")
    assert files.find([2, 1]) is None
    assert files.find([]) is None


IDS = st.lists(st.integers(-1, 2), min_size=1, max_size=6)


@given(st.lists(IDS, max_size=6), IDS)
def test_finding_is_the_longest_common_beginning_with_a_saved_list(saved, ids):
    with tempfile.TemporaryDirectory() as folder:
        for one in saved:
            store(folder).save(one, repr(one).encode())
        found = store(folder).find(ids)
        begins = [one for one in saved if ids[: len(one)] == one]
        longest = max(begins, key=len, default=None)
        assert found == (longest and Prefix(len(longest), repr(longest).encode()))


def test_a_payload_is_replaced(tmp_path):
    files = store(tmp_path)
    files.save([1], b"old")
    files.save([1], bytearray(b"new"))
    assert files.find([1]) == Prefix(1, b"new")
    only_file(tmp_path)
    files.save([1], memoryview(b"empty")[:0])
    assert files.find([1]) == Prefix(1, b"")


def test_another_key_finds_nothing(tmp_path):
    store(tmp_path).save([1, 2], PAYLOAD)
    other = store(tmp_path, key=KEY | {"adapter": "x"})
    assert other.find([1, 2]) is None
    assert store(tmp_path, key=dict(reversed(KEY.items()))).find([1, 2])


def test_only_the_file_that_is_returned_is_opened(tmp_path, monkeypatch):
    files = store(tmp_path)
    for ids in ([1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5], [9, 2, 3], [1, 9, 3]):
        files.save(ids, PAYLOAD)
    opened = []
    load = files._load

    def noted(name, packed):
        opened.append(name)
        return load(name, packed)

    monkeypatch.setattr(files, "_load", noted)
    assert files.find([1, 2, 3, 4]) == Prefix(3, PAYLOAD)
    assert len(opened) == 1


def test_nothing_is_made_before_the_first_save_and_then_for_this_user_only(tmp_path):
    folder = tmp_path / "cache" / "prefixes"
    files = store(folder)
    assert files.find([1]) is None
    assert not folder.parent.exists()
    files.save([1], PAYLOAD)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(only_file(folder).stat().st_mode) == 0o600


# --- damage -------------------------------------------------------------------------------------


def damaged(change):
    """What is found after `change` of the file's bytes, with a shorter good file beside it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store(folder).save([1, 2, 3], PAYLOAD)
        path = only_file(folder)
        path.write_bytes(change(path.read_bytes()))
        store(folder).save([1, 2], b"good")
        found = store(folder).find([1, 2, 3, 4])
        return found, path.exists()


@given(st.data())
def test_a_file_cut_anywhere_is_not_used_and_removed(data):
    def cut(whole):
        return whole[: data.draw(st.integers(0, len(whole) - 1))]

    assert damaged(cut) == (Prefix(2, b"good"), False)


@given(st.data())
def test_a_file_with_any_changed_byte_is_not_used(data):
    def flip(whole):
        at = data.draw(st.integers(0, len(whole) - 1))
        changed = whole[at] ^ data.draw(st.integers(1, 255))
        return whole[:at] + bytes([changed]) + whole[at + 1 :]

    found, _ = damaged(flip)
    assert found == Prefix(2, b"good")


@pytest.mark.parametrize("at", range(58 + 12, 58 + 12 + 200, 7))
def test_a_changed_byte_of_the_payload_is_not_used_and_removed(at):
    def flip(whole):
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

    assert damaged(flip) == (Prefix(2, b"good"), False)


def test_a_longer_file_is_not_used_and_removed():
    assert damaged(lambda whole: whole + b"\0") == (Prefix(2, b"good"), False)


@pytest.mark.parametrize("change", [b"SOMEELSE", prefix_files.MAGIC + b"\2\0\0\0"])
def test_a_file_of_somebody_else_or_of_another_version_is_left_alone(tmp_path, caplog, change):
    files = store(tmp_path)
    files.save([1, 2, 3], PAYLOAD)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(change + whole[len(change) :])
    assert files.find([1, 2, 3]) is None
    assert files.find([1, 2, 3]) is None
    assert path.exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_damaged_file_is_told_of_once(tmp_path, caplog):
    files = store(tmp_path)
    files.save([1, 2, 3], PAYLOAD)
    only_file(tmp_path).write_bytes(b"RELAYPFX")
    assert files.find([1, 2, 3]) is None
    assert files.find([1, 2, 3]) is None
    (record,) = caplog.records
    assert "it ends after 8 bytes" in record.getMessage()


@pytest.mark.parametrize("saved", [([7, 8, 9], KEY), ([1, 2, 3], {"model": "other"})])
def test_a_file_under_another_s_name_is_not_used(tmp_path, saved):
    """Whole in itself: only its ids, or its key, are not those of its name."""
    ids, key = saved
    store(tmp_path / "a").save([1, 2, 3], PAYLOAD)
    store(tmp_path / "b", key=key).save(ids, b"wrong")
    only_file(tmp_path / "b").replace(only_file(tmp_path / "a"))
    assert store(tmp_path / "a").find([1, 2, 3]) is None
    assert list((tmp_path / "a").iterdir()) == []


def test_what_is_not_a_file_of_ours_is_not_touched(tmp_path):
    files = store(tmp_path, max_bytes=size_of_one(tmp_path))
    folder = tmp_path / "measured"
    name = only_file(folder).name
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / name).mkdir()  # a folder, or a pipe, whose opening would wait for ever
    os.mkfifo(tmp_path / name.replace("00000003", "00000002"))
    (tmp_path / name.replace("00000003", "00000001")).symlink_to(tmp_path / "notes.txt")
    before = set(tmp_path.iterdir())
    assert files.find([1, 2, 3]) is None
    assert files.save([5, 6, 7], PAYLOAD)
    assert files.find([5, 6, 7])
    assert before < set(tmp_path.iterdir())


# --- the bound ----------------------------------------------------------------------------------


def test_what_was_used_the_longest_ago_makes_room(tmp_path):
    files = store(tmp_path / "files", max_bytes=3 * size_of_one(tmp_path))
    for n in (1, 2, 3):
        files.save([n] * 3, PAYLOAD)
    assert files.find([1] * 3)  # 2 is the oldest now
    files.save([4] * 3, PAYLOAD)
    assert [n for n in (1, 2, 3, 4) if files.find([n] * 3)] == [1, 3, 4]
    files.save([5] * 3, PAYLOAD)
    assert [n for n in (1, 3, 4, 5) if files.find([n] * 3)] == [3, 4, 5]


def test_saving_again_is_a_use_and_makes_no_other_leave(tmp_path):
    files = store(tmp_path / "files", max_bytes=2 * size_of_one(tmp_path))
    for n in (1, 2, 2):
        files.save([n] * 3, PAYLOAD)
    assert len(list((tmp_path / "files").iterdir())) == 2
    files.save([1] * 3, PAYLOAD)
    files.save([3] * 3, PAYLOAD)
    assert [n for n in (1, 2, 3) if files.find([n] * 3)] == [1, 3]


def test_files_of_other_keys_count_and_leave_too(tmp_path):
    one = size_of_one(tmp_path)
    old = store(tmp_path / "files", max_bytes=2 * one, key={"model": "old"})
    old.save([1, 1, 1], PAYLOAD)
    new = store(tmp_path / "files", max_bytes=2 * one)
    new.save([1, 1, 1], PAYLOAD)
    new.save([2, 2, 2], PAYLOAD)
    assert old.find([1, 1, 1]) is None
    assert new.find([1, 1, 1])
    assert new.find([2, 2, 2])


def test_what_is_larger_than_the_bound_is_not_saved_and_nothing_leaves_for_it(tmp_path):
    one = size_of_one(tmp_path)
    files = store(tmp_path / "files", max_bytes=one)
    assert files.save([1, 2, 3], PAYLOAD)
    assert not files.save([4, 5, 6], PAYLOAD + b"x")
    assert not files.save([], b"")
    assert files.find([1, 2, 3]) == Prefix(3, PAYLOAD)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 300), st.booleans()), max_size=20))
def test_the_bound_holds_after_every_save(saves):
    with tempfile.TemporaryDirectory() as folder:
        files = store(folder, max_bytes=1_000)
        for n, size, find in saves:
            if find:
                files.find([n] * 4)
            assert files.save([n] * 4, bytes(size))
            assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= 1_000
            assert files.find([n] * 4) == Prefix(4, bytes(size))


def test_what_a_crashed_process_left_unfinished_is_removed_after_an_hour(tmp_path):
    files = store(tmp_path)
    files.save([1], PAYLOAD)
    fresh, stale = (only_file(tmp_path).with_suffix(f".prefix.{n}.tmp") for n in ("a", "b"))
    for path in (fresh, stale):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    files.save([2], PAYLOAD)
    assert (fresh.exists(), stale.exists()) == (True, False)


# --- faults and other processes -----------------------------------------------------------------


def test_a_folder_that_cannot_be_is_told_of_once(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    files = store(tmp_path / "file" / "folder")
    assert not files.save([1], PAYLOAD)
    assert not files.save([1], PAYLOAD)
    assert len(caplog.records) == 1
    files.find([1])
    files.find([1])
    assert len(caplog.records) == 2


def test_a_full_disk_leaves_no_half_file_and_what_was_there(tmp_path, monkeypatch, caplog):
    files = store(tmp_path)
    files.save([1], b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert not files.save([1], PAYLOAD)
    assert not files.save([2], PAYLOAD)
    assert files.find([1]) == Prefix(1, b"old")
    only_file(tmp_path)
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()


def test_files_that_vanish_between_listing_and_opening_are_not_found(tmp_path, monkeypatch, caplog):
    files = store(tmp_path)
    files.save([1], PAYLOAD)
    files.save([1, 2], PAYLOAD)
    candidates = files._candidates(prefix_files._packed([1, 2]))
    assert len(candidates) == 2
    for path in tmp_path.iterdir():
        path.unlink()
    monkeypatch.setattr(files, "_candidates", lambda packed: candidates)
    assert files.find([1, 2]) is None
    assert not caplog.records


WORKER = """
import random, sys
from langchain_relay.local.prefix_files import PrefixFiles

folder, seed = sys.argv[1], int(sys.argv[2])
files = PrefixFiles(folder, max_bytes=4_000, key={})
rng = random.Random(seed)
print("ready", flush=True)
sys.stdin.readline()
found = 0
for _ in range(300):
    ids = [rng.randrange(8)] * rng.randrange(1, 4)
    if rng.random() < 0.5:
        assert files.save(ids, bytes(ids) * 200)
    elif prefix := files.find(ids):
        assert prefix.payload == bytes(ids[: prefix.n_ids]) * 200
        found += 1
print(found)
"""


def test_two_processes_share_a_folder(tmp_path):
    """Room for some ten of 24 files, so each deletes what the other is about to open."""
    command = [sys.executable, "-W", "error", "-c", WORKER, str(tmp_path)]
    workers = [
        subprocess.Popen(
            [*command, str(seed)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert (worker.returncode, err) == (0, "")
        assert int(out) > 20
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4_000
