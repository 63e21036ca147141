"""The summary: figures, exit code, file and tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.phases import phases_of
from loadtest.run import LoadRun, Verdict
from loadtest.summary import LoadSummary, print_summary, summarize, write_summary
from loadtest.tally import RequestOutcome

ENDED: dict[str, Any] = {"reached_end": True, "ended": 110.0}
METRICS = {
    ("nv_inference_request_success", frozenset({("model", "m")})): 10.0,
    ("polyhead_queue_seconds_sum", frozenset({("model", "m")})): 0.03,
    ("polyhead_queue_seconds_count", frozenset({("model", "m")})): 10.0,
}


def finished(shape: str = "constant", objectives: dict[str, float] | None = None, **fields: Any) -> LoadRun:
    """A run of 10 s with a right answer of 2 texts and 12 tokens every tenth of a second, in 20 ms each."""
    options = SimpleNamespace(
        shape=shape, protocol="http", model="m", slow_ms=300.0, tolerance=0.001, tolerance_reason="asked"
    )
    limits = {"error_rate": 0.0, "refused_rate": 0.0, "mismatch_rate": 0.0} | (objectives or {})
    run = LoadRun(options, [], None, limits, **ENDED | fields)  # type: ignore[arg-type]
    run.phases, run.started = phases_of(shape, 4, 10.0, 2), 100.0
    for tenth in range(100):
        run.tally.add(RequestOutcome.RIGHT, 2, 12, 20.0, 100.02 + tenth / 10)
    return run


def test_figures() -> None:
    """Throughput is by texts and tokens too, over the time from the first request's start to the last one's end."""
    summary = summarize(finished(before={}, after={}))
    assert (summary.requests, summary.texts, summary.tokens) == (100, 200, 1200)
    assert summary.duration_s == pytest.approx(9.92)
    assert summary.texts_s == pytest.approx(200 / 9.92, abs=0.01)
    assert summary.tokens_s == pytest.approx(1200 / 9.92, abs=0.01)
    assert summary.p50_ms == summary.p99_ms == pytest.approx(20, rel=0.01)
    assert (summary.error_rate, summary.mismatch_rate, summary.exit_code) == (0.0, 0.0, 0)
    assert (summary.p999_ms, summary.max_ms) == (20.0, 20.0)  # no percentile is above the maximum
    assert (summary.slow, summary.slow_share, summary.refused, summary.without_server_s) == (0, 0.0, 0, 0.0)
    assert (summary.phases, summary.server, summary.late_p99_ms) == ([], {}, None)


@pytest.mark.parametrize(
    ("outcome", "rate"), [(RequestOutcome.MISMATCH, "mismatch_rate"), (RequestOutcome.FAILED, "error_rate")]
)
def test_one_failure_fails_the_run(outcome: RequestOutcome, rate: str) -> None:
    """One wrong or missing answer among a hundred right ones misses the objective that always holds."""
    run = finished()
    run.tally.add(outcome, 2, 12, 20.0, 110.0)
    summary = summarize(run)
    assert [verdict.objective for verdict in summary.verdicts if not verdict.met] == [rate]
    assert summary.exit_code == 1
    assert (summary.mismatches, summary.errors) == ((1, 0) if outcome is RequestOutcome.MISMATCH else (0, 1))
    assert summary.texts == 200


def test_a_broken_user_is_an_error() -> None:
    """An exception that a user raises outside requests counts as an error."""
    summary = summarize(finished(), broken_users=2)
    assert (summary.errors, summary.exit_code) == (2, 1)
    assert summary.error_rate == pytest.approx(2 / 102)


def test_nothing_answered_is_no_success() -> None:
    """A run that answered nothing right fails, even if its objectives allow everything."""
    run = finished(objectives={"error_rate": 1.0, "mismatch_rate": 1.0})
    run.tally.seconds.clear()
    assert summarize(run).exit_code == 1
    run.tally.add(RequestOutcome.MISMATCH, 2, 12, 20.0, 110.0)
    assert summarize(run).exit_code == 1


def test_missed_objectives() -> None:
    """Each objective is compared with its own figure."""
    summary = summarize(finished(objectives={"p95_ms": 10.0, "min_texts_s": 10.0}))
    assert {verdict.objective: verdict.met for verdict in summary.verdicts} == {
        "error_rate": True, "refused_rate": True, "mismatch_rate": True, "p95_ms": False, "min_texts_s": True,
    }  # fmt: skip
    assert summary.exit_code == 1


def test_phases_have_their_own_figures() -> None:
    """A shape's phases are told apart by when requests ended."""
    run = finished("steps")
    for tenth in range(50):  # the second half is faster, and wrong once
        run.tally.add(RequestOutcome.RIGHT, 2, 12, 20.0, 105.02 + tenth / 10)
    run.tally.add(RequestOutcome.FOREIGN, 2, 12, 500.0, 107.5)
    first, second = summarize(run).phases
    assert (first.name, first.users, first.texts_s, first.mismatches) == ("step 1", 2, 20.0, 0)
    assert (second.name, second.users, second.texts_s, second.mismatches) == ("step 2", 4, 40.0, 1)
    assert first.p99_ms is not None
    assert second.p99_ms is not None
    assert summarize(run).foreign == 1


def test_saturated_step_is_named() -> None:
    """Steps that all reach the same are saturated at the first."""
    assert summarize(finished("steps")).saturated == "step 1"
    assert summarize(finished("constant")).saturated is None


def test_what_users_feel() -> None:
    """One slow request in a hundred stands in the maximum, in p99.9 and in the share over the limit."""
    run = finished(objectives={"p95_ms": 100.0, "p999_ms": 500.0, "max_ms": 550.0, "slow_share": 0.005})
    run.tally.add(RequestOutcome.RIGHT, 2, 12, 533.3, 110.0)
    summary = summarize(run)
    assert (summary.max_ms, summary.slow, summary.slow_share) == (533.3, 1, pytest.approx(1 / 101))
    assert summary.p999_ms == pytest.approx(533.3, rel=0.005)
    assert [verdict.objective for verdict in summary.verdicts if not verdict.met] == ["p999_ms", "slow_share"]


def test_refusals_are_no_errors() -> None:
    """A refused request is counted by itself, fails the run unless the file allows it, and nobody calls it fast."""
    run = finished()
    run.tally.add(RequestOutcome.REFUSED, 2, 12, 1.0, 110.0)
    summary = summarize(run)
    assert (summary.refused, summary.errors, summary.slow, summary.exit_code) == (1, 0, 1, 1)
    assert [verdict.objective for verdict in summary.verdicts if not verdict.met] == ["refused_rate"]
    assert summary.mean_ms == pytest.approx(20, rel=0.01)
    assert summarize(finished(objectives={"refused_rate": 0.1})).exit_code == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"reached_end": False}, "stopped before its 10 s were over"),
        ({"ended": 0.0}, "while requests were under way"),
        ({"lost_workers": 2}, "workers lost with their last counts: 2"),
    ],
)
def test_cut_short_is_no_success(fields: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that did not go to its end fails although all objectives are met, and says why."""
    summary = summarize(finished(**fields))
    assert all(verdict.met for verdict in summary.verdicts)
    assert summary.exit_code == 1
    last = printed(summary, capsys).splitlines()[-1]
    assert last.startswith("load test: FAILED, cut short: ")
    assert words in last


def test_seconds_without_a_server() -> None:
    """An outage lasts from the first request that found no server to the next answer, or to the end of the run."""
    run = finished(objectives={"without_server_s": 2.0})
    run.tally.outages.lost(102.0)
    run.tally.outages.lost(102.5)
    run.tally.outages.answered(103.5)
    run.tally.outages.lost(109.0)
    summary = summarize(run)
    assert summary.without_server_s == 2.5
    assert [verdict.objective for verdict in summary.verdicts if not verdict.met] == ["without_server_s"]


def test_write_replaces_whole(tmp_path: Path) -> None:
    """Writing makes missing folders, replaces an older file and leaves nothing beside it."""
    path = tmp_path / "new" / "summary.json"
    good = summarize(finished())
    write_summary(replace(good, errors=3), path)
    write_summary(good, path)
    written = json.loads(path.read_text())
    assert (written["errors"], written["exit_code"]) == (0, 0)
    assert written["verdicts"][0] == {"objective": "error_rate", "limit": 0.0, "measured": 0.0, "met": True}
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json"]


def printed(summary: LoadSummary, capsys: pytest.CaptureFixture[str]) -> str:
    """The printed tables."""
    print_summary(summary)
    return capsys.readouterr().out


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """The server's time stands beside the client's, and last come objectives and verdict."""
    run = finished("steps", objectives={"p95_ms": 50.0}, before={}, after=METRICS)
    run.before = dict.fromkeys(METRICS, 0.0)
    shown = printed(summarize(run), capsys)
    assert "step 1 (saturated)" in shown
    assert any(
        line.split() == ["server:", "queue", "per", "request", "3.0", "-", "-", "-"] for line in shown.splitlines()
    )
    assert "--metrics-url" not in shown
    assert "Tolerance of scores: 0.001 (asked)." in shown
    *_, objective, verdict = shown.splitlines()
    assert objective.split() == ["p95_ms", "50", "20.0", "yes"]
    assert verdict == "load test: objectives met, all answers agree with the expected ones"


def test_tables_of_a_failed_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Missed objectives are named, and missing figures have a reason."""
    run = finished(objectives={"p95_ms": 5.0})
    run.tally.lateness.add(250.0)
    shown = printed(summarize(run), capsys)
    assert "need --metrics-url" in shown
    assert "more than 249 ms late" in shown  # 250 ms, to within half a hundredth
    assert shown.splitlines()[-1] == "load test: FAILED, missed p95_ms"
    nothing = replace(summarize(run), texts=0, verdicts=[Verdict("error_rate", 0.0, None, False)])
    assert printed(nothing, capsys).splitlines()[-1] == "load test: FAILED, nothing was answered right"
