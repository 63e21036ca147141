"""The tables of docs/quality.md. ``python -m benchmarks.quality.page`` writes them again from the JSON result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.quality.data_sets import ROOT
from benchmarks.quality.methods import METHODS
from benchmarks.quality.plot import METRICS
from loadtest.result import RESULTS
from polyhead.files import write_file

PAGE = ROOT / "docs" / "quality.md"
BEGIN, END = "<!-- begin of the tables -->", "<!-- end of the tables -->"
NOTHING = "There is no result yet. `make bench-quality` writes it here."


def write_page(page: Path, result: Mapping[str, Any] | None) -> None:
    """Puts the tables of a result into the page, between its two marks."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_file(page, f"{before}{BEGIN}\n\n{tables(result)}\n\n{END}{after}")


def tables(result: Mapping[str, Any] | None) -> str:
    """All tables as Markdown."""
    if result is None:
        return NOTHING
    parts = [_sentence(result), _main_table(result), _other_metrics(result)]
    if any(found["outside"] for found in result["sets"].values()):
        parts.append(_outside(result))
    parts += [_cost(result), *_remarks(result)]
    return "\n\n".join(parts)


def _sentence(result: Mapping[str, Any]) -> str:
    measured = result.get("measured_on", {})
    machine = f" Measured on {measured['date'][:10]}, {measured['cores']} cores, {measured['cpu']}." if measured else ""
    margin = result["worst_margin"]
    worst = "" if margin is None else f" The worst margin is {margin:+.3f}."
    return (
        f"Polyhead wins {result['heads_won']} of {result['heads']} heads.{worst} All runs together took "
        f"{result['hours']:.1f} hours.{machine}"
    )


def _main_table(result: Mapping[str, Any]) -> str:
    methods = list(result["methods"])
    rows = []
    for data_set, name, head in _heads(result):
        scores = [_cell(head["methods"].get(method), head["metric"]) for method in methods]
        against = head.get("against")
        test = ["", "", ""]
        if against:
            better = METHODS[against["peer"]].title
            test = [f"{against['margin']:+.3f} ({better})", _p(against["p"]), "yes" if against["is_won"] else "no"]
        rows.append([f"{data_set} {name}", METRICS[head["metric"]], *scores, *test])
    return _table(["head", "metric", *result["methods"].values(), "margin to", "p", "won"], rows)


def _other_metrics(result: Mapping[str, Any]) -> str:
    methods = list(result["methods"])
    rows = []
    for data_set, name, head in _heads(result):
        for metric, title in (("macro_f1", "macro F1"), ("ece", "ECE"), ("never_answered", "labels never answered")):
            scores = [_cell(head["methods"].get(method), metric) for method in methods]
            if any(scores):
                rows.append([f"{data_set} {name}", title, *scores])
    return _table(["head", "metric", *result["methods"].values()], rows)


def _outside(result: Mapping[str, Any]) -> str:
    methods = list(result["methods"])
    rows = []
    for data_set, found in result["sets"].items():
        for metric, title in (("auroc", "AUROC"), ("rejected", "rejected at 95 % coverage")):
            scores = [_cell(found["outside"].get(method), metric) for method in methods]
            if any(scores):
                rows.append([f"{data_set}, texts out of scope", title, *scores])
    return _table(["data set", "metric", *result["methods"].values()], rows)


def _cost(result: Mapping[str, Any]) -> str:
    rows = []
    for data_set, found in result["sets"].items():
        cells = []
        for method in result["methods"]:
            runs = found["runs"].get(method, [])
            seconds, memory = median(run["seconds"] for run in runs), max(run["memory_mb"] for run in runs)
            cells.append(f"{seconds:,.0f} s, {memory:,.0f} MB")
        counts = found["rows"]
        rows.append([data_set, f"{counts['train']:,}", f"{counts['validation']:,}", f"{counts['test']:,}", *cells])
    return _table(["data set", "training rows", "validation", "test", *result["methods"].values()], rows)


def _remarks(result: Mapping[str, Any]) -> list[str]:
    found = [f"`{name}` did not run: {why}." for name, why in result["missing"].items()]
    for data_set, each in result["sets"].items():
        for method, runs in each["runs"].items():
            for run in runs:
                if run["failed"] is not None:
                    found.append(f"`{method}` on {data_set}, seed {run['seed']}: {run['failed']}.")
    return found


def _heads(result: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    return [(name, head, found) for name, each in result["sets"].items() for head, found in each["heads"].items()]


def _cell(scores: Mapping[str, Any] | None, metric: str) -> str:
    """The mean, and half the range over seeds if there is one."""
    if scores is None or metric not in scores:
        return ""
    score = scores[metric]
    digits = 1 if metric == "never_answered" else 3
    if len(score["values"]) == 1:
        return f"{score['mean']:.{0 if metric == 'never_answered' else digits}f}"
    return f"{score['mean']:.{digits}f} ± {(score['high'] - score['low']) / 2:.{digits}f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    found = RESULTS / "quality.json"
    write_page(PAGE, json.loads(found.read_text(encoding="utf-8")) if found.exists() else None)
