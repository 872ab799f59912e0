"""A stream pulled by a thread: what it gives, and that closing it ends the connection at once."""

from __future__ import annotations

import asyncio
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI

from langchain_relay.delegates import ChatModelDelegate
from langchain_relay.delegates.hangup import hang_up
from langchain_relay.delegates.pump import Pump, pulled
from langchain_relay.engine.errors import DelegateError
from tests.faults import Fault, FaultServer, Reply
from tests.integration_tests.delegates.transports import attempt

# Clients are left to the garbage collector, as most programs leave them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

AT_ONCE_S = 5.0
"""On a busy machine. Without being hung up on, nothing here would end at all."""


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5.0)
    with ours, theirs:
        yield ours, theirs


def gone(thread_name: str, within_s: float = AT_ONCE_S) -> bool:
    """Whether no thread of this name is left in time."""
    end = time.monotonic() + within_s
    while any(thread.name == thread_name for thread in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def received(sock: socket.socket, pause_s: float = 0.0) -> Iterator[bytes]:
    """What a client makes of a socket, with work between two reads."""
    while data := sock.recv(1024):
        yield data
        time.sleep(pause_s)


# --- what it gives ------------------------------------------------------------------------------


def test_pieces_and_the_end_arrive_in_order():
    pump: Pump[int] = Pump(lambda: iter(range(200)))
    assert [pump.next(1.0) for _ in range(201)] == [*range(200), None]


def test_an_error_is_raised_behind_the_pieces_before_it():
    def stream() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    pump: Pump[int] = Pump(stream)
    assert pump.next(1.0) == 1
    with pytest.raises(LookupError, match="no more"):
        pump.next(1.0)


def test_a_stream_that_would_end_the_program_ends_itself():
    def stream() -> Iterator[int]:
        raise KeyboardInterrupt
        yield 1

    with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
        Pump(stream).next(1.0)


def test_a_reader_waits_no_longer_than_it_said(wire: Any):
    pump = Pump(lambda: received(wire[0]))
    with pytest.raises(queue.Empty):
        pump.next(0.01)
    pump.close()
    assert gone("relay-delegate")


# --- hanging up ---------------------------------------------------------------------------------


def test_closing_wakes_a_thread_that_reads_and_ends_the_connection(wire: Any):
    ours, theirs = wire
    pump = Pump(lambda: received(ours))
    theirs.sendall(b"x")
    assert pump.next(1.0) == b"x"
    pump.close()
    assert theirs.recv(1) == b""
    assert gone("relay-delegate")


def test_a_thread_between_two_reads_is_hung_up_on_in_the_next(wire: Any):
    ours, theirs = wire
    silent = (data for data in received(ours, pause_s=0.1) if data != b"x")
    pump = Pump(lambda: silent)
    theirs.sendall(b"x")
    time.sleep(0.02)  # now it works on that
    pump.close()
    assert theirs.recv(1) == b""
    assert gone("relay-delegate")


def test_a_stream_that_is_over_is_not_hung_up_on(wire: Any):
    ours, theirs = wire
    pump = Pump(lambda: iter([ours.recv(1)]))
    theirs.sendall(b"x")
    assert [pump.next(1.0), pump.next(1.0)] == [b"x", None]
    before = set(threading.enumerate())  # what hung up on an earlier stream may still be ending
    pump.close()
    begun = set(threading.enumerate()) - before
    assert not any(thread.name == "relay-hang-up" for thread in begun)
    theirs.sendall(b"y")
    assert ours.recv(1) == b"y"


class HTTP2Connection:
    """By the name of httpcore's, which carries requests of others too."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read(self) -> bytes:
        return self.sock.recv(1)


def work(sock: socket.socket) -> None:
    over = threading.Event()

    def deeper() -> None:
        while not select.select([sock], [], [], 0)[0]:
            over.wait(0.01)

    deeper()


@pytest.mark.parametrize(
    ("read", "ends"),
    [
        (lambda sock: sock.recv(1), True),
        (lambda sock: HTTP2Connection(sock).read(), False),
        (work, False),
    ],
    ids=["one request", "shared by requests", "work"],
)
def test_only_a_socket_of_one_request_is_shut_down(
    wire: Any, read: Callable[[socket.socket], Any], ends: bool
):
    ours, theirs = wire
    thread = threading.Thread(target=lambda: read(ours), daemon=True)
    thread.start()
    done, end = False, time.monotonic() + (AT_ONCE_S if ends else 0.2)
    while not done and time.monotonic() < end:  # it may not have come to its read yet
        time.sleep(0.005)
        done = hang_up(thread)
    assert done is ends
    assert thread.is_alive() or ends
    if not ends:
        theirs.sendall(b"x")
    thread.join(AT_ONCE_S)
    assert not thread.is_alive()


def test_a_thread_that_has_ended_is_left_alone():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert hang_up(thread) is False


COLLECTING = """
import gc, os, threading, time
from langchain_relay.delegates.hangup import hang_up

class Cycle:
    def __init__(self): self.me = self
    def __del__(self): time.sleep(0.00001)  # lets another thread go on, as closing a socket does

def again(what):
    while True: what()

def start():
    thread = threading.Thread(target=time.sleep, args=[0.0001])
    thread.start()
    thread.join()

def frame(): time.sleep(0.0001)
def garbage(): Cycle(); time.sleep(0.0002)

gc.set_threshold(5, 2, 2)
threads = [threading.Thread(target=again, args=[what], daemon=True)
           for what in (garbage, start, start, *[frame] * 6)]
for thread in threads: thread.start()
end = time.monotonic() + 1.5
while time.monotonic() < end: hang_up(threads[-1])
print("went on", gc.isenabled(), flush=True)
os._exit(0)
"""


def test_a_collection_in_the_middle_of_hanging_up_locks_nothing_up():
    """Apart: what it would lock up is the whole process."""
    ran = subprocess.run(
        [sys.executable, "-c", COLLECTING], capture_output=True, text=True, timeout=40, check=True
    )
    assert ran.stdout == "went on True\n"


# --- on an event loop ---------------------------------------------------------------------------


async def test_a_loop_reads_a_sync_stream_and_goes_on_meanwhile(wire: Any):
    ours, theirs = wire

    async def say() -> None:
        for data in (b"a", b"b"):
            await asyncio.sleep(0.01)
            theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)

    got, saying = [], asyncio.create_task(say())
    async with aclosing(pulled(lambda: received(ours))) as pieces:
        got = [piece async for piece in pieces]
    await saying
    assert got == [b"a", b"b"]


class SyncOnly(BaseChatModel):
    """A class without an async side, as many integrations are."""

    inner: ChatOpenAI

    @property
    def _llm_type(self) -> str:
        return "sync-only"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        kwargs.pop("run_manager", None)
        return self.inner._generate(messages, **kwargs)

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        yield from self.inner._stream(messages, **kwargs)


@pytest.mark.parametrize("whole", [False, True], ids=["streamed", "whole"])
def test_a_class_without_an_async_side_is_broken_off_on_a_loop(whole: bool):
    fault = Fault.SLOW_HEADERS if whole else Fault.KEEP_ALIVE
    with FaultServer(Reply(fault=fault, delay_s=60.0, hold_s=60.0)) as server:
        inner = ChatOpenAI(model="m", base_url=f"{server.url}/v1", api_key="test", max_retries=0)
        delegate = ChatModelDelegate(SyncOnly(inner=inner, disable_streaming=whole))

        text = ""

        async def read() -> None:
            nonlocal text
            async for delta in delegate.astream(attempt()):
                text += delta.text

        async def read_a_while() -> None:
            reading = asyncio.create_task(read())
            while not (server.served if whole else text == "blue light"):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert not reading.done()
            reading.cancel()
            await asyncio.wait([reading])

        began_s = time.monotonic()
        asyncio.run(read_a_while())
        assert text == ("" if whole else "blue light")
        assert time.monotonic() - began_s < 30.0, "the loop waited for a thread"
        assert server.settled(AT_ONCE_S)
        assert server.served[0].hung_up


def test_a_class_without_an_async_side_answers_and_fails_on_a_loop_like_any_other():
    with FaultServer("blue light.", Reply(fault=Fault.UNAUTHORIZED)) as server:
        inner = ChatOpenAI(model="m", base_url=f"{server.url}/v1", api_key="test", max_retries=0)
        delegate = ChatModelDelegate(SyncOnly(inner=inner))

        async def read() -> str:
            return "".join([delta.text async for delta in delegate.astream(attempt())])

        assert asyncio.run(read()) == "blue light."
        with pytest.raises(DelegateError, match="401") as caught:
            asyncio.run(read())
        assert not caught.value.retryable
