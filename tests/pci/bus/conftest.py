"""Fixtures for the tests of the bus."""

from __future__ import annotations

from pathlib import Path

import pytest

from .tree import Tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """An empty host in place of this one."""
    return Tree(tmp_path, monkeypatch)
