"""What the hardware tests' report has to show, so that a module that only skips is noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def unexpected(
    tests: Sequence[Mapping[str, Any]], module: str, may_skip: Sequence[str]
) -> list[str]:
    """What is wrong with a module's outcomes; nothing, where it is as it should be.

    Args:
        tests: a report's.
        module: its path in the checkout.
        may_skip: parts of the reasons for which its tests may skip.
    """
    its = [test for test in tests if test["test"].startswith(f"{module}::")]
    wrong = [
        f"{test['test']} {test['outcome']}: {test['reason']}"
        for test in its
        if test["outcome"] != "passed"
        if test["outcome"] != "skipped" or not any(why in test["reason"] for why in may_skip)
    ]
    if not any(test["outcome"] == "passed" for test in its):
        wrong.append(f"nothing of {module} passed")
    return wrong
