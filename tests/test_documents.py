"""What a document shows is compared with what was printed, and can differ from it."""

from __future__ import annotations

import pytest

from hwtests.documents import check


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("", ""),
        ("120 120\n", "120 120\n"),
        ("at 0x... for it\n", "at 0x200000 for it\n"),
        ("...\nlast\n", "last but two\nlast but one\nlast\n"),
        ("first\n...\n", "first\n  two\nthree\n"),
        ("a.b (1)\n", "a.b (1)\n"),
        ("one   ...\ntwo\n", "one   device   \ntwo\n"),
    ],
)
def test_what_is_shown_is_printed(shown: str, printed: str) -> None:
    check(printed, shown)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("", "something\n"),
        ("something\n", ""),
        ("120\n", "120\n120\n"),
        ("at 0x... for it\n", "at 0x2000\n00 for it\n"),
        ("...\nlast\n", "last\nbut not least\n"),
        ("first\n...\nlast\n", "first\nlast but one\n"),
        ("a.b\n", "acb\n"),
    ],
)
def test_what_is_shown_is_not_printed(shown: str, printed: str) -> None:
    with pytest.raises(AssertionError, match="shown"):
        check(printed, shown)
