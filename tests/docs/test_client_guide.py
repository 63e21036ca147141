"""docs/client.md: the Python examples, run in order, print what the guide says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from polyhead_client.testing import FakeServer

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "client.md"
ANSWERS = {
    "a goal in the last minute": {"topic": {"sport": 0.9, "news": 0.1}, "mood": ["happy"], "stars": 4.5},
    "a vote": {"topic": "news"},
}


def snippets() -> list[tuple[str, str]]:
    """Each Python block with the output below it."""
    text = GUIDE.read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, flags=re.DOTALL)


def test_every_snippet_has_its_output() -> None:
    """Every Python example of the guide has its output below it."""
    assert len(snippets()) == GUIDE.read_text(encoding="utf-8").count("```python") > 8


def test_snippets() -> None:
    """Each example prints the output below it; only the port differs."""
    namespace: dict[str, Any] = {"__name__": "guide"}
    with FakeServer(answer=ANSWERS).serve() as address:
        port = address.partition(":")[2]
        for code, expected in snippets():
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code.replace(":8000", f":{port}"), str(GUIDE), "exec"), namespace)
            assert printed.getvalue() == expected, code
