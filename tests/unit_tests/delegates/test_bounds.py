"""Where a span is cut: at exactly n tokens, else at 8n bytes, and the same for every chunking."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import quicktok
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.delegates.bounds import Bound, ByteBound, TokenBound
from tests.faults.script import word_ids

FRAGMENTS = [
    *("The", " quick", "ing", " internationalization", "'s", " don't", " 12345", "."),
    *("从前", "有一个", "，", "🙂", "👨‍👩‍👧", " é", "ß", "Ω", "नमस्ते"),
    *("\n", "\n\n", "  ", " ", "\t", "{", "}", ";", "\\frac", "x_", "aaaa"),
]
texts = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=40).map("".join)
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=8)
encodings = pytest.mark.parametrize("name", ["o200k_base", "cl100k_base", "llama3", "qwen3"])


def chunks(text: str, sizes: list[int]) -> list[str]:
    pieces, at, turn = [], 0, 0
    while at < len(text):
        pieces.append(text[at : at + sizes[turn % len(sizes)]])
        at, turn = at + len(pieces[-1]), turn + 1
    return pieces


def passed(bound: Bound, pieces: Iterable[str]) -> str:
    out = ""
    for piece in pieces:
        out += bound.push(piece)
        if bound.over:
            break
    return out + bound.flush()


@encodings
@given(text=texts, n=st.integers(1, 60), sizes=sizes)
def test_any_chunking_is_cut_at_the_same_place(
    name: str, text: str, n: int, sizes: list[int]
) -> None:
    encode = quicktok.get_encoding(name).encode_ordinary
    whole, cut = TokenBound(n, encode), TokenBound(n, encode)
    assert passed(cut, chunks(text, sizes)) == passed(whole, [text])
    assert cut.over == whole.over == (len(encode(text)) > n)


@encodings
@given(text=texts, n=st.integers(1, 60), sizes=sizes)
def test_a_span_is_what_its_first_n_tokens_spell(
    name: str, text: str, n: int, sizes: list[int]
) -> None:
    encoding = quicktok.get_encoding(name)
    spelled = encoding.decode_bytes(encoding.encode_ordinary(text)[:n]).decode(errors="ignore")
    got = passed(TokenBound(n, encoding.encode_ordinary), chunks(text, sizes))
    if name in {"o200k_base", "llama3"}:
        assert got == spelled
    else:  # vocabularies that split characters: the last one may be missing, where nobody sees it
        assert spelled.startswith(got)
        assert len(spelled) - len(got) <= 1


def test_a_word_is_not_cut_where_its_beginning_has_more_tokens_than_all_of_it() -> None:
    encode = quicktok.get_encoding("o200k_base").encode_ordinary
    assert len(encode(" ligh")) == 2
    assert len(encode(" light")) == 1
    assert passed(TokenBound(2, encode), " blue light scatters") == " blue light"


def test_what_fits_is_passed_on_at_once_until_the_end_is_near() -> None:
    encode = quicktok.get_encoding("o200k_base").encode_ordinary
    bound = TokenBound(40, encode)
    pieces = [" word"] * 32
    assert [bound.push(piece) for piece in pieces] == pieces
    near = [bound.push(" word") for _ in range(10)]
    assert near[-3:] == [" word", " word", ""], "the last word waits for what may follow"
    assert bound.over
    assert bound.flush() == ""


def test_chinese_is_passed_on_before_its_end() -> None:
    encode = quicktok.get_encoding("o200k_base").encode_ordinary
    bound = TokenBound(100, encode)
    text = "从前有一个小村庄，村里住着一位老人。" * 5
    assert bound.push(text[:60]) == text[:60]


def test_a_flood_is_cut_in_no_time() -> None:
    asked = 0

    def encode(text: str) -> list[int]:
        nonlocal asked
        asked += len(text)
        return word_ids(text)

    bound = TokenBound(8, encode)
    assert passed(bound, ["word " * 200_000]) == "word " * 7 + "word"
    assert asked < 1_000_000


def test_an_unbroken_flood_is_cut_as_well() -> None:
    encode = quicktok.get_encoding("o200k_base").encode_ordinary
    bound = TokenBound(8, encode)
    assert bound.push("好" * 100_000)
    assert bound.over


@given(text=texts, n=st.integers(1, 40), sizes=sizes)
def test_without_a_tokenizer_the_cut_is_at_8n_bytes_and_at_a_character(
    text: str, n: int, sizes: list[int]
) -> None:
    bound = ByteBound(n)
    got = passed(bound, chunks(text, sizes))
    assert got == text.encode()[: 8 * n].decode(errors="ignore")
    assert bound.over == (len(text.encode()) > 8 * n)


def test_a_byte_bound_that_is_over_takes_nothing_more() -> None:
    bound = ByteBound(1)
    assert bound.push("1234567é") == "1234567"
    assert (bound.push("x"), bound.flush()) == ("", "")
