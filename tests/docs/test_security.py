"""docs/security.md: every row of its table names tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.test_arrows import ROOT

PAGE = ROOT / "docs" / "security.md"
REFERENCE = re.compile(r"`?([\w/]+\.py)::(test_\w+)`?")


def rows() -> Iterator[list[str]]:
    """The cells of each row below a table's head."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not re.match(r"\|(---|\s*who\s*\|)", line):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: re.sub(r"\W+", "-", " ".join(row[:2]))[:60])
def test_a_row_has_tests_that_exist(row: list[str]) -> None:
    """Who, what they can try, what stops them, and at least one test function in its file."""
    assert len(row) == 4
    assert all(row)
    references = REFERENCE.findall(row[3])
    assert references
    assert not REFERENCE.sub("", row[3]).strip(" ,")
    for file, name in references:
        path = ROOT / "tests" / file.removeprefix("tests/")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_everyone_has_a_row() -> None:
    """Outsiders, callers, local users, and those who write checkpoints, deploy, or supply dependencies."""
    who = " ".join(row[0] for row in rows())
    for each in ("reaches the proxy", "with a key", "writes checkpoints", "deploys", "supplies dependencies"):
        assert each in who
