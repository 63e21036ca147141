"""docs/explain.md: the examples print what the guide says."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polyhead_client.testing import FakeServer
from tests.test_arrows import ROOT

GUIDE = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")


def examples(language: str) -> list[tuple[str, str]]:
    """Each example in this language, with the output below it."""
    found = re.findall(rf"```{language}\n(.*?)```\n\n```text\n(.*?)```", GUIDE, flags=re.DOTALL)
    assert len(found) == GUIDE.count(f"```{language}") > 0
    return found


@pytest.fixture(scope="module")
def address() -> Any:
    """A server with planted words."""

    def answer(text: str) -> dict[str, Any]:
        score = 0.25 + 0.5 * ("goal" in text) - 0.06 * ("rain" in text)
        return {"topic": {"sport": score, "news": 0.25}}

    with FakeServer(answer).serve() as address:
        yield address


def test_python(address: str) -> None:
    """Each Python example prints the output below it; only the port differs."""
    namespace: dict[str, Any] = {"__name__": "guide"}
    for code, expected in examples("python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code.replace("127.0.0.1:8000", address), "explain.md", "exec"), namespace)
        assert printed.getvalue() == expected, code
    namespace["client"].close()


def test_command(address: str) -> None:
    """The command prints the table of the guide."""
    settings = {"POLYHEAD_CLIENT_SERVER": address, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
    for code, expected in examples("sh"):
        done = subprocess.run(
            ["bash", "-euc", code], env=os.environ | settings, capture_output=True, encoding="utf-8", check=False
        )
        # rich fills the line of a title with blanks.
        assert [line.rstrip() for line in done.stdout.splitlines()] == expected.splitlines(), done.stderr
