"""What is remembered of a function that was bound, when the file holds something else."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio import errors
from pyvfio.pci import paths, record

from .tree import Tree

ADDRESS = "0000:01:00.0"
GOOD = {"identity": "x", "driver": "nvme", "override": None, "target": "vfio-pci"}


def load(tree: Tree, content: bytes) -> record.Record | None:
    function = tree.function(ADDRESS)
    paths.RECORDS.mkdir(exist_ok=True)
    (paths.RECORDS / f"{ADDRESS}.json").write_bytes(content)
    return record.load(function)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 3000,
        b"[" * 1_000_000,
        b'{"identity":' * 300,
        b"1" * 5000,
        b"\xff\xfe",
        b"null",
        json.dumps([GOOD]).encode(),
        json.dumps({**GOOD, "more": 1}).encode(),
        json.dumps({**GOOD, "driver": 1}).encode(),
        json.dumps({**GOOD, "driver": "x" * 10_000}).encode(),
    ],
    ids=lambda content: content[:20].decode(errors="replace"),
)
def test_file_that_is_no_record_says_so(tree: Tree, content: bytes) -> None:
    with pytest.raises(errors.BindFailed, match="is broken or from"):
        load(tree, content)


@settings(deadline=None)
@given(
    content=st.binary(max_size=200)
    | st.text('[]{}":,0123456789 ntrue', max_size=200).map(str.encode)
    | st.recursive(
        st.none() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(GOOD)), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_file_is_a_record_or_an_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch, suppress(errors.BindFailed):
        load(Tree(tmp_path_factory.mktemp("tree"), patch), content)
