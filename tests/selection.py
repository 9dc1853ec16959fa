"""Which files of tests are imported at all: a run of marked tests leaves out those that have none of them.

Importing what eighty modules import takes most of the time that collecting takes, in each worker of each run.
"""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

_MARK = re.compile(r"\bmark\.(\w+)")
_OF_PYTEST = {"parametrize", "filterwarnings", "skip", "skipif", "timeout", "usefixtures", "xfail"}


def may_hold(expression: str, source: str) -> bool:
    """Whether a module with this text may have a test that a marker expression selects.

    A test has some of the marks that its module names, or none.
    """
    names = sorted(set(_MARK.findall(source)) - _OF_PYTEST)
    chosen = Expression.compile(expression)
    some = (frozenset(marks) for size in range(len(names) + 1) for marks in combinations(names, size))
    return any(chosen.evaluate(lambda name, /, marks=marks, **_: name in marks) for marks in some)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    expression = config.option.markexpr
    if collection_path.suffix != ".py" or not expression:
        return None
    return None if may_hold(expression, collection_path.read_text(encoding="utf-8")) else True
