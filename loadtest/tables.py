"""A summary for people: phases, throughput, times, and last the objectives."""

from __future__ import annotations

import sys
from dataclasses import astuple

from rich.console import Console
from rich.table import Table

from loadtest.summary import Summary

LATE_MS = 10.0  # a load generator that starts requests later than that is itself part of the latency


def print_summary(summary: Summary) -> None:
    """Prints to stdout, where it is no terminal in lines of 100 characters."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    if summary.phases:
        console.print(_phases(summary))
    console.print(_throughput(summary))
    console.print(_times(summary))
    if not summary.server:
        console.print("The server's own times need --metrics-url, and the server to be there at the end.")
    if summary.late_p99_ms is not None and summary.late_p99_ms > LATE_MS:
        console.print(
            f"The load generator started 1 of 100 requests more than {summary.late_p99_ms:.0f} ms late, which its "
            "latencies contain: give it --processes, or cores of its own.",
            soft_wrap=True,
        )
    console.print(_objectives(summary))
    console.print(f"load test: {_verdict(summary)}", soft_wrap=True)


def _verdict(summary: Summary) -> str:
    if summary.texts == 0:
        return "FAILED, nothing was answered rightly"
    missed = [verdict.objective for verdict in summary.verdicts if not verdict.met]
    if missed:
        return f"FAILED, missed {', '.join(missed)}"
    agree = "all answers agree" if summary.mismatches == 0 else f"{summary.mismatches} mismatches"
    return f"objectives met, {agree} with the expected ones"


def _phases(summary: Summary) -> Table:
    table = _table("phase", "users", "texts/s", "p50 ms", "p95 ms", "p99 ms", "errors", "mismatches")
    for phase in summary.phases:
        name = f"{phase.name} (saturated)" if phase.name == summary.saturated else phase.name
        table.add_row(name, *map(_number, astuple(phase)[1:]))
    return table


def _throughput(summary: Summary) -> Table:
    table = _table(f"{summary.shape}, {summary.protocol}, {summary.duration_s:.1f} s", "count", "a second")
    table.add_row("requests", _number(summary.requests), _number(summary.requests_s))
    table.add_row("texts answered rightly", _number(summary.texts), _number(summary.texts_s))
    table.add_row("tokens in them", _number(summary.tokens), _number(summary.tokens_s))
    table.add_row("mismatches", _number(summary.mismatches), "")
    table.add_row("  answers to other texts", _number(summary.foreign), "")
    table.add_row("errors", _number(summary.errors), "")
    return table


def _times(summary: Summary) -> Table:
    table = _table("ms", "mean", "p50", "p95", "p99")
    figures = (summary.mean_ms, summary.p50_ms, summary.p95_ms, summary.p99_ms)
    table.add_row("client: latency a request", *map(_number, figures))
    kinds = {"queue": "a request", "tokenize": "a batch", "compute": "a batch", "decode": "a batch"}
    for name, unit in kinds.items():
        stage = summary.server.get(name)
        times = astuple(stage) if stage else (None, None, None, None)
        table.add_row(f"server: {name} {unit}", *map(_number, times))
    if summary.texts_a_batch is not None:
        table.add_row("server: texts a batch", _number(summary.texts_a_batch), "", "", "")
    return table


def _objectives(summary: Summary) -> Table:
    table = _table("objective", "limit", "measured", "met")
    for verdict in summary.verdicts:
        met = "yes" if verdict.met else "NO"
        table.add_row(verdict.objective, f"{verdict.limit:g}", _number(verdict.measured), met)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for name in others:
        table.add_column(name, justify="right")
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
