"""The objectives' file and its verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest import CannotRunError
from loadtest.run import judge, read_objectives

FIGURES = {
    "p50_ms": 10.0,
    "p95_ms": 20.0,
    "p99_ms": 30.0,
    "slow_share": 0.01,
    "error_rate": 0.0,
    "refused_rate": 0.0,
    "mismatch_rate": 0.0,
    "texts_s": 100.0,
}


def test_without_a_file_nothing_may_fail() -> None:
    """No error, no refusal and no mismatch is allowed unless a file allows them."""
    assert read_objectives(None) == {"error_rate": 0.0, "refused_rate": 0.0, "mismatch_rate": 0.0}


def test_the_file_adds_and_overrides(tmp_path: Path) -> None:
    """Keys of the file are taken, what it leaves out stays."""
    path = tmp_path / "objectives.toml"
    path.write_text("p95_ms = 250\nmin_texts_s = 50.5\nerror_rate = 0.001\n")
    assert read_objectives(path) == {
        "error_rate": 0.001, "refused_rate": 0.0, "mismatch_rate": 0.0, "p95_ms": 250.0, "min_texts_s": 50.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "p90_ms = 3",
            "unknown key 'p90_ms'; allowed are p50_ms, p95_ms, p99_ms, p999_ms, max_ms, slow_share, error_rate",
        ),
        ("p95_ms = -1", "p95_ms must be a number of at least 0, got -1"),
        ("p95_ms = nan", "p95_ms must be a number of at least 0, got nan"),
        ("p95_ms = true", "p95_ms must be a number of at least 0, got True"),
        ("p95_ms = '3'", "p95_ms must be a number"),
        ("slow_share = 1.5", "slow_share is a share of requests, at most 1, got 1.5"),
        ("error_rate = 5", "error_rate is a share of requests, at most 1, got 5"),
        ("p95_ms = ", "cannot be read as TOML"),
        ("\udcff", "cannot be read as TOML"),
    ],
)
def test_bad_files_are_refused(content: str, words: str, tmp_path: Path) -> None:
    """What is wrong is named with what is allowed."""
    path = tmp_path / "objectives.toml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CannotRunError, match=str(path)) as refused:
        read_objectives(path)
    assert words in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A name that is mistyped is no file without objectives."""
    with pytest.raises(CannotRunError, match="cannot be read"):
        read_objectives(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "limit", "met"),
    [
        ("p95_ms", 20.0, True),
        ("p95_ms", 19.9, False),
        ("p50_ms", 10.0, True),
        ("p99_ms", 29.0, False),
        ("slow_share", 0.01, True),
        ("slow_share", 0.009, False),
        ("min_texts_s", 100.0, True),
        ("min_texts_s", 100.1, False),
        ("error_rate", 0.0, True),
    ],
)
def test_limits(name: str, limit: float, met: bool) -> None:
    """Latencies and rates may reach their limit from below, throughput from above."""
    (verdict,) = judge({name: limit}, FIGURES)
    assert (verdict.objective, verdict.limit, verdict.met) == (name, limit, met)


def test_nothing_measured_misses() -> None:
    """Where nothing was answered, no objective is met by default of figures."""
    verdicts = judge(read_objectives(None) | {"p95_ms": 1e9}, {**FIGURES, "p95_ms": None, "error_rate": None})
    assert {verdict.objective: verdict.met for verdict in verdicts} == {
        "error_rate": False, "refused_rate": True, "mismatch_rate": True, "p95_ms": False,
    }  # fmt: skip
