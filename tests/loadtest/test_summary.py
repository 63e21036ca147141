"""The summary's exit code and its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtest.summary import Mismatch, Summary, format_summary, summarize, write_summary

GOOD = Summary(requests=10, texts=20, mismatches=0, errors=0, duration_s=2.0, texts_per_s=10.0, p50_ms=3.0, p95_ms=5.0)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"mismatches": 1}, 1),
        ({"errors": 1}, 1),
        ({"texts": 0}, 1),
        ({"requests": 0, "texts": 0, "p50_ms": None}, 1),
    ],
)
def test_exit_code(change: dict[str, int | None], code: int) -> None:
    """Success is at least one right answer and nothing else."""
    summary = replace(GOOD, **change)  # type: ignore[arg-type]
    assert summary.exit_code == code
    assert ("FAILED" in format_summary(summary)) == bool(code)


def test_write_replaces_whole(tmp_path: Path) -> None:
    """Writing makes missing folders, replaces an older file and leaves nothing beside it."""
    path = tmp_path / "new" / "summary.json"
    write_summary(replace(GOOD, errors=3), path)
    write_summary(GOOD, path)
    assert json.loads(path.read_text())["errors"] == 0
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json"]


def test_counts_failures_by_kind() -> None:
    """Mismatches are told from errors, whether locust holds the exception or, from a worker, its repr."""
    errors = {
        number: SimpleNamespace(name="classify", error=error, occurrences=occurrences)
        for number, (error, occurrences) in enumerate(
            [(Mismatch("a"), 2), (repr(Mismatch("b")), 3), (OSError("Mismatch("), 4), ("TimeoutError()", 5)]
        )
    }
    total = SimpleNamespace(
        num_requests=20,
        num_failures=14,
        start_time=10.0,
        last_request_timestamp=12.0,
        get_response_time_percentile=lambda share: 100 * share,
    )
    summary = summarize(SimpleNamespace(total=total, errors=errors), texts_per_request=3, broken_users=1)
    assert summary == Summary(20, 18, 5, 10, 2.0, 9.0, 50.0, 95.0)
