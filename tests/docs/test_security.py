"""docs/security.md: every row of its tables names tests that exist, or says that nothing stops it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.test_arrows import ROOT

PAGE = ROOT / "docs" / "security.md"
REFERENCE = re.compile(r"([\w/]+\.py)(?:::(test_\w+))?")


def tables() -> Iterator[tuple[str, list[str]]]:
    """The heading above each row of the tables, and the row's cells."""
    heading = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("|") and not re.match(r"\|(---|\s*tries to\s*\|)", line):
            yield heading, [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


ROWS = list(tables())


@pytest.mark.parametrize("row", [row for _, row in ROWS], ids=lambda row: re.sub(r"\W+", "-", row[0])[:60])
def test_a_row_has_tests_that_exist(row: list[str]) -> None:
    """What is tried, what stops it, and test functions that exist; only what is not stopped may have none."""
    assert len(row) == 3
    assert all(row)
    references = REFERENCE.findall(row[2])
    if not references:
        assert row[2] == "none"
        assert "not stopped" in row[1].lower()
        return
    assert not REFERENCE.sub("", row[2]).strip(" ,")
    for file, name in references:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions if name else any(each.startswith("test_") for each in functions), f"{file}::{name}"


def test_everyone_has_a_table() -> None:
    """Outsiders, callers, local users, and those who write checkpoints, deploy, or supply dependencies."""
    headings = " ".join({heading for heading, _ in ROWS})
    for who in ("can connect", "with a key", "user of the machine", "a checkpoint", "deploys", "supplies dependencies"):
        assert who in headings


def test_examples_name_an_address() -> None:
    """``localhost`` may be ``::1`` first, where another user may listen beside the server at 127.0.0.1."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*"), *ROOT.glob("deploy/*/*"), *ROOT.glob("*/README.md")]
    code = [
        path
        for folder in ("client", "serving", "scoring", "loadtest", "demo")
        for path in (ROOT / folder).rglob("*.py")
    ]
    for path in (path for path in (*pages, *code) if path.is_file() and path.suffix not in (".png", ".svg")):
        assert not re.search(r"localhost:[0-9]|//localhost", path.read_text(encoding="utf-8")), path
