"""Scripts with and without blanks between words."""

from __future__ import annotations

_CJK = (
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xAC00, 0xD7AF),  # Hangul
    (0xF900, 0xFAFF),  # Han, compatibility
    (0x20000, 0x323AF),  # Han, extensions B to H
)


def is_cjk(char: str) -> bool:
    """Whether it is of a script without blanks between words."""
    return bool(char) and any(low <= ord(char) <= high for low, high in _CJK)


def words_meet(left: str, right: str) -> bool:
    """Whether two characters need a blank between them."""
    if is_cjk(left) or is_cjk(right):
        return False
    return (left.isalnum() or left in {",", ".", ";", ":", "!", "?", ")"}) and right.isalnum()
