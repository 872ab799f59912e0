"""A context that counts instead of decoding: the engine's asks without llama.cpp."""

from __future__ import annotations

import threading

TIMEOUT_S = 60
END = 0


class Counting:
    """A context whose next token is always the last byte plus one; ids are bytes."""

    n_ctx = 50
    thinking = False
    rewinds = True

    def __init__(self):
        self.vocab = self
        self.cache: dict[int, list[int]] = {}
        self.batches: list[dict[int, int]] = []
        self.tried: list[int] = []
        self.gate: threading.Event | None = None
        self.turnstile: threading.Semaphore | None = None
        self.entered = threading.Event()
        self.poison: int | None = None
        self.crash = False
        self.freed = 0
        self.forgets_parts = True
        self.exchanges = True
        self.copying = False

    # the vocabulary
    def tokenize(self, text, *, special=False, first=False):
        return list(text.encode())

    def count(self, text):
        return len(text.encode())

    def piece(self, token):
        return bytes([token])

    def is_eog(self, token):
        return token == END

    # the context
    def prompt(self, turns, *, open_assistant, known):
        contents = enumerate(turn.content.encode() for turn in turns)
        return [byte for number, text in contents for byte in known.get(number, text)]

    def sampler(self, chosen):
        return Largest()

    def decode(self, rows, *, hidden=False):
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(TIMEOUT_S)
        if self.turnstile is not None:
            assert self.turnstile.acquire(timeout=TIMEOUT_S)
        if self.crash:
            raise RuntimeError("out of my mind")
        self.copying = False
        self.tried.append(len(rows))
        batch: dict[int, int] = {}
        self._rows = rows
        for row in rows:
            cache = self.cache.setdefault(row.sequence, [])
            assert row.position == len(cache), "a hole or an overlap in the KV cache"
            cache.append(row.token)
            batch[row.sequence] = batch.get(row.sequence, 0) + 1
        if any(row.token == self.poison for row in rows):
            return -3
        self.batches.append(batch)
        return 0

    def logits(self, row):
        assert self._rows[row].wanted
        scores: list[float] = [0.0] * 256
        scores[(self._rows[row].token + 1) % 256] = 2.0
        scores[ord("?")] = 1.0
        return scores

    def measure(self, logits, signals):
        return dict.fromkeys(signals, 1.0)

    def cut(self, sequence, length):
        if length and not self.forgets_parts:
            return False
        del self.cache.setdefault(sequence, [])[length:]
        return True

    def copy(self, source, target):
        assert not self.cache.setdefault(target, [])
        self.cache[target] = list(self.cache[source])
        self.copying = True  # llama.cpp copies at the next decode

    def exchange(self, a, b):
        assert not self.copying, "contents are moved before they are copied"
        held = self.cache.get(a, []), self.cache.get(b, [])
        self.cache[b], self.cache[a] = held
        return self.exchanges

    def grammar(self, text):
        return OneLetter(text)

    def last_words(self):
        return "it is the poison"

    def free(self):
        self.freed += 1


class OneLetter:
    """A grammar whose text is written with one letter."""

    def __init__(self, text):
        self.text = text

    def follow(self, written):
        self.written = list(written)

    def allows(self, token):
        return token == ord(self.text)

    def mask(self, logits):
        for token in range(len(logits)):
            if not self.allows(token):
                logits[token] = float("-inf")

    def free(self):
        pass


class Largest:
    def pick(self, logits, position, written, attempt):
        return max(range(len(logits)), key=logits.__getitem__)

    def free(self):
        pass
