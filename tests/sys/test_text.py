"""Texts that others chose are escaped before a terminal sees them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvfio._sys.text import printable


@given(st.text())
def test_printable_texts_are_printable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


def test_names_of_many_languages_stay() -> None:
    for name in ("Broadcom Inc. / LSI", "Société ABC", "株式会社", "100 µs"):
        assert printable(name) == name
