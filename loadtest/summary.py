"""The result of a run, as JSON and as tables: counts, throughput, latency, server times, and the objectives."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.phases import Phase, find_saturation
from loadtest.run import LoadRun, Verdict, judge
from loadtest.server_metrics import Stage, stages, subtract, texts_per_micro_batch
from loadtest.tally import Counts, RequestOutcome

STAGE_NAMES = ("queue per request", "tokenize per call", "compute per micro-batch", "decode per call")
LATE_MS = 10.0  # from this delay on, the load generator is itself a noticeable part of the latency

Row = tuple[float | str | None, ...]


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """The requests that ended within one phase of the shape."""

    name: str
    users: int
    texts_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float | None
    slow: int
    refused: int
    errors: int
    mismatches: int


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """The result of one run.

    Attributes:
        requests: all requests that ended.
        texts, tokens: of requests that were answered right.
        mismatches: requests with at least one wrong answer.
        foreign: those among them that got the answer to another text.
        refused: requests that the server refused because it had too many (503).
        errors: other requests without an answer, and users that broke.
        slow: requests that took longer than `slow_ms`, or got no answer.
        without_server_s: seconds in which the users found no server.
        duration_s: from when the first request was due to the end of the last one.
        planned_s: how long the users should send; `cut_short` says why the run did not go to its end, else None.
        mean_ms, p50_ms, p95_ms, p99_ms, p999_ms: latency of requests, without those that were refused or failed within
            `slow_ms`; None if there are none. Exact to 1 %.
        max_ms: the highest of these latencies, exactly.
        error_rate, refused_rate, mismatch_rate, slow_share: shares of all requests.
        late_p99_ms: open arrivals only: how late the load generator itself started requests.
        server: times by stage; empty if the server's metrics were not asked for or could not be read at the end.
        texts_per_micro_batch: number of texts per micro-batch that the server computed, or None.
        tolerance: the allowed difference of a score; `tolerance_reason` says where it comes from.
        phases: only of shapes that have more than one.
        saturated: shape steps only: the phase after which more users hardly added throughput.
    """

    shape: str
    protocol: str
    users: int
    planned_s: float
    duration_s: float
    cut_short: str | None
    requests: int
    texts: int
    tokens: int
    mismatches: int
    foreign: int
    refused: int
    errors: int
    slow: int
    slow_ms: float
    without_server_s: float
    requests_s: float
    texts_s: float
    tokens_s: float
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float | None
    slow_share: float | None
    error_rate: float | None
    refused_rate: float | None
    mismatch_rate: float | None
    late_p99_ms: float | None
    server: dict[str, Stage]
    texts_per_micro_batch: float | None
    tolerance: float
    tolerance_reason: str
    phases: list[PhaseResult]
    saturated: str | None
    verdicts: list[Verdict]

    @property
    def exit_code(self) -> int:
        """0 only if the run went to its end, something was answered right, and all objectives are met."""
        return 0 if self.cut_short is None and self.texts > 0 and all(verdict.met for verdict in self.verdicts) else 1


def summarize(run: LoadRun, broken_users: int = 0) -> LoadSummary:
    """Summarizes a run that has ended; `broken_users` is the number of exceptions outside requests."""
    total, options = run.tally.total(), run.options
    duration_s = max(run.tally.ended - run.tally.began, 0.0)
    errors = total.errors + broken_users
    ended = total.requests + broken_users
    phases = [_phase_result(phase, *run.counts(phase)) for phase in run.phases] if len(run.phases) > 1 else []
    saturation = find_saturation([phase.texts_s for phase in phases]) if options.shape == "steps" else None
    added = subtract(run.before, run.after) if run.before and run.after else {}
    figures: dict[str, Any] = {
        "requests_s": _per_second(total.requests, duration_s),
        "texts_s": _per_second(total.texts, duration_s),
        "tokens_s": _per_second(total.tokens, duration_s),
        "mean_ms": _rounded(total.latencies.mean()),
        **_latencies(total),
        "slow_share": total.slow / total.requests if total.requests else None,
        "error_rate": errors / ended if ended else None,
        "refused_rate": total.refused / ended if ended else None,
        "mismatch_rate": total.mismatches / ended if ended else None,
        "without_server_s": round(run.tally.outages.seconds(run.ended or time.time()), 2),
    }
    return LoadSummary(
        shape=options.shape,
        protocol=options.protocol,
        users=max(phase.users_to for phase in run.phases),
        planned_s=run.planned_s,
        duration_s=round(duration_s, 3),
        cut_short=run.cut_short,
        requests=total.requests,
        texts=total.texts,
        tokens=total.tokens,
        mismatches=total.mismatches,
        foreign=total.outcomes[RequestOutcome.FOREIGN],
        refused=total.refused,
        errors=errors,
        slow=total.slow,
        slow_ms=options.slow_ms,
        **figures,
        late_p99_ms=_rounded(run.tally.lateness.percentile(0.99)),
        server=stages(added, options.model) if added else {},
        texts_per_micro_batch=texts_per_micro_batch(added, options.model) if added else None,
        tolerance=options.tolerance,
        tolerance_reason=options.tolerance_reason,
        phases=phases,
        saturated=None if saturation is None else phases[saturation].name,
        verdicts=judge(run.objectives, figures),
    )


def _phase_result(phase: Phase, counts: Counts, seconds: int) -> PhaseResult:
    return PhaseResult(
        name=phase.name,
        users=phase.users_to,
        texts_s=_per_second(counts.texts, seconds),
        **_latencies(counts),
        slow=counts.slow,
        refused=counts.refused,
        errors=counts.errors,
        mismatches=counts.mismatches,
    )


def _latencies(counts: Counts) -> dict[str, float | None]:
    shares = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}
    found = {name: _rounded(counts.percentile(share)) for name, share in shares.items()}
    return {**found, "max_ms": _rounded(counts.max_ms) if counts.latencies else None}


def _per_second(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 2)


def write_summary(summary: LoadSummary, path: Path) -> None:
    """Writes the summary as JSON, in one step: whoever waits for the file never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(asdict(summary) | {"exit_code": summary.exit_code}, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def print_summary(summary: LoadSummary) -> None:
    """Prints tables to stdout, with the objectives last; 120 characters wide if stdout is no terminal."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if summary.phases:
        names = (
            "phase, ms", "users", "texts/s", "p50", "p95", "p99", "p99.9", "max", f"over {summary.slow_ms:g}",
            "refused", "errors", "mismatches",
        )  # fmt: skip
        rows = (
            (f"{one.name} (saturated)" if one.name == summary.saturated else one.name, *astuple(one)[1:])
            for one in summary.phases
        )
        console.print(_table(names, rows))
    console.print(_throughput(summary))
    console.print(_times(summary))
    if not summary.server:
        console.print("The server's own times need --metrics-url, and a server that still runs at the end.")
    if summary.late_p99_ms is not None and summary.late_p99_ms > LATE_MS:
        console.print(
            f"The load generator started 1 of 100 requests more than {summary.late_p99_ms:.0f} ms late, and its "
            "latencies include that: give it --processes, or its own cores.",
            soft_wrap=True,
        )
    console.print(f"Tolerance of scores: {summary.tolerance:g} ({summary.tolerance_reason}).", soft_wrap=True)
    verdicts = [(one.objective, f"{one.limit:g}", one.measured, "yes" if one.met else "NO") for one in summary.verdicts]
    console.print(_table(("objective", "limit", "measured", "met"), verdicts))
    console.print(f"load test: {_verdict(summary)}", soft_wrap=True)


def _verdict(summary: LoadSummary) -> str:
    if summary.texts == 0:
        return "FAILED, nothing was answered right" + (f": {summary.cut_short}" if summary.cut_short else "")
    if summary.cut_short:
        return f"FAILED, cut short: {summary.cut_short}"
    missed = [verdict.objective for verdict in summary.verdicts if not verdict.met]
    if missed:
        return f"FAILED, missed {', '.join(missed)}"
    agree = "all answers agree" if summary.mismatches == 0 else f"{summary.mismatches} mismatches"
    return f"objectives met, {agree} with the expected ones"


def _throughput(summary: LoadSummary) -> Table:
    rows = (
        ("requests", summary.requests, summary.requests_s),
        ("texts answered right", summary.texts, summary.texts_s),
        ("tokens in them", summary.tokens, summary.tokens_s),
        ("mismatches", summary.mismatches, ""),
        ("  answers to other texts", summary.foreign, ""),
        ("refused", summary.refused, ""),
        ("errors", summary.errors, ""),
        (f"over {summary.slow_ms:g} ms or without an answer", summary.slow, ""),
        ("seconds without a server", summary.without_server_s, ""),
    )
    return _table((f"{summary.shape}, {summary.protocol}, {summary.duration_s:.1f} s", "count", "per second"), rows)


def _times(summary: LoadSummary) -> Table:
    rows: list[Row] = [
        (
            "client: latency per request",
            summary.mean_ms,
            summary.p50_ms,
            summary.p95_ms,
            summary.p99_ms,
            summary.p999_ms,
            summary.max_ms,
        ),
        *(
            (f"server: {name}", *astuple(summary.server.get(name.split()[0], Stage(None))), "", "")
            for name in STAGE_NAMES
        ),
    ]
    if summary.texts_per_micro_batch is not None:
        rows.append(("server: texts per micro-batch", summary.texts_per_micro_batch, "", "", "", "", ""))
    return _table(("ms", "mean", "p50", "p95", "p99", "p99.9", "max"), rows)


def _table(names: Sequence[str], rows: Iterable[Row]) -> Table:
    table = Table(names[0], box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in names[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(_number, row))
    return table


def _number(value: float | str | None) -> str:
    match value:
        case None:
            return "-"
        case str():
            return value
        case int():
            return f"{value:,}"
        case _:
            return f"{value:,.1f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
