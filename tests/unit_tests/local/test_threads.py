"""Engines with more decode threads than cores take turns."""

from __future__ import annotations

import logging
import threading

import pytest

from langchain_relay.local.threads import DecodeThreads, usable_cores

TIMEOUT_S = 60


def test_there_is_at_least_one_core():
    assert usable_cores() >= 1


def test_more_threads_than_cores_are_told_once_per_engine(caplog):
    threads = DecodeThreads(cores=2)
    with caplog.at_level(logging.WARNING):
        threads.join(2)
        assert not caplog.messages
        threads.join(1)
    assert len(caplog.messages) == 1
    assert "3 decode threads" in caplog.messages[0]
    assert "2 cores" in caplog.messages[0]
    caplog.clear()
    threads.leave(2)
    threads.join(1)
    assert not caplog.messages


@pytest.mark.parametrize("n_threads", [2, 5])
def test_two_engines_that_need_all_cores_never_decode_at_once(n_threads):
    threads = DecodeThreads(cores=2)
    inside, most = 0, 0
    lock = threading.Lock()

    def engine():
        nonlocal inside, most
        for _ in range(50):
            with threads.turn(n_threads):
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    for _ in range(3):
        threads.join(n_threads)
    engines = [threading.Thread(target=engine) for _ in range(3)]
    for one in engines:
        one.start()
    for one in engines:
        one.join(TIMEOUT_S)
    assert not any(one.is_alive() for one in engines)
    assert most == 1


def test_whoever_came_first_is_first():
    threads = DecodeThreads(cores=1)
    threads.join(1)
    threads.join(1)
    order: list[int] = []

    def engine(number):
        with threads.turn(1):
            order.append(number)

    with threads.turn(1):
        engines = []
        for number in range(4):
            one = threading.Thread(target=engine, args=(number,))
            one.start()
            engines.append(one)
            while len(threads._queue) <= number:
                threading.Event().wait(0.001)
    for one in engines:
        one.join(TIMEOUT_S)
    assert order == [0, 1, 2, 3]


def test_engines_that_fit_decode_at_once():
    threads = DecodeThreads(cores=2)
    threads.join(1)
    threads.join(1)
    threads.join(1)  # now there are too many for all, but not for two
    with threads.turn(1):
        done = threading.Event()

        def engine():
            with threads.turn(1):
                done.set()

        other = threading.Thread(target=engine)
        other.start()
        assert done.wait(TIMEOUT_S)
        other.join(TIMEOUT_S)


def test_a_decode_that_fails_gives_its_cores_back():
    threads = DecodeThreads(cores=1)
    threads.join(2)
    with pytest.raises(RuntimeError), threads.turn(1):
        raise RuntimeError
    with threads.turn(1):
        pass
