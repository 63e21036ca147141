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

METRICS = {
    ("nv_inference_request_success", frozenset({("model", "m")})): 10.0,
    ("polyhead_queue_seconds_count", frozenset({("model", "m")})): 10.0,
    ("polyhead_queue_seconds_sum", frozenset({("model", "m")})): 0.03,
}


def finished(shape: str = "constant", objectives: dict[str, float] | None = None, **fields: Any) -> LoadRun:
    """A run of 10 s with a right answer of 2 texts and 12 tokens every tenth of a second, in 20 ms each."""
    options = SimpleNamespace(
        shape=shape, protocol="http", model="m", tolerance=0.001, tolerance_reason="asked", slow_ms=300.0
    )
    limits = {"error_rate": 0.0, "mismatch_rate": 0.0} | (objectives or {})
    run = LoadRun(options, [], None, limits, phases=phases_of(shape, 4, 10.0, 2), started=100.0, **fields)  # type: ignore[arg-type]
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
    assert (summary.phases, summary.server, summary.late_p99_ms) == ([], {}, None)


@pytest.mark.parametrize(
    ("outcome", "rate"), [(RequestOutcome.MISMATCH, "mismatch_rate"), (RequestOutcome.REFUSED, "error_rate")]
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


def test_what_users_feel() -> None:
    """One slow request of a thousand shows in p99.9, in the maximum and in the slow share, and misses objectives."""
    run = finished(objectives={"p999_ms": 300.0, "max_ms": 300.0, "slow_share": 0.001, "p99_ms": 300.0})
    for tenth in range(100):
        run.tally.add(RequestOutcome.RIGHT, 2, 12, 20.0, 100.02 + tenth / 10)
    run.tally.add(RequestOutcome.RIGHT, 2, 12, 523.4, 107.5)
    summary = summarize(run)
    assert (summary.p999_ms, summary.max_ms) == (pytest.approx(523.4, rel=0.01), 523.4)
    assert summary.p99_ms == pytest.approx(20, rel=0.01)
    assert summary.slow_share == pytest.approx(1 / 201)
    assert {verdict.objective for verdict in summary.verdicts if not verdict.met} == {"p999_ms", "max_ms", "slow_share"}


@pytest.mark.parametrize(("stopped", "is_cut_short"), [(110.0, False), (109.5, False), (104.0, True), (0.0, False)])
def test_a_run_that_was_cut_short_decides_nothing(
    stopped: float, is_cut_short: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """If somebody stops a run before its time, it does not say that the objectives are met, and its exit code is 1."""
    summary = summarize(finished(stopped=stopped))
    assert (summary.is_cut_short, summary.exit_code) == (is_cut_short, int(is_cut_short))
    last = printed(summary, capsys).splitlines()[-1]
    assert ("objectives met" in last) == (not is_cut_short)
    assert last.startswith("load test: CUT SHORT: it was stopped before its 10 s") == is_cut_short


def test_seconds_without_a_server_are_counted() -> None:
    """Only seconds in which nobody was answered count, and their errors do not make the latency look fast."""
    run = finished()
    for second in (3, 20, 21, 21):
        run.tally.add(RequestOutcome.NO_SERVER, 1, 5, 0.3, 100.5 + second)
    summary = summarize(run)
    assert (summary.without_server_s, summary.errors) == (2, 4)
    assert summary.p50_ms == pytest.approx(20, rel=0.01)


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
        "error_rate": True, "mismatch_rate": True, "p95_ms": False, "min_texts_s": True,
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
