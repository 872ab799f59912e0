"""A forked child does not wait for threads that are not there."""

from __future__ import annotations

import os
import threading

import pytest

from langchain_relay.local import CompletionServerModel, LlamaCppModel

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PATIENCE_S = 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of what is tested
@pytest.mark.parametrize(
    "make", [LlamaCppModel, lambda: CompletionServerModel("http://127.0.0.1:1")]
)
def test_a_lock_that_a_thread_of_the_parent_holds_is_free_in_the_child(make):
    model = make()
    held, done = threading.Event(), threading.Event()

    def hold():
        with model._lock:
            held.set()
            done.wait(PATIENCE_S)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(PATIENCE_S)
    child = os.fork()
    if child == 0:
        closing = threading.Thread(target=model.close, daemon=True)
        closing.start()
        closing.join(PATIENCE_S)
        os._exit(int(closing.is_alive()))
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
