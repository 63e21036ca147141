"""A comparison of runs on the rows that all of them evaluated: which head got better, and whether that is chance.

Every run is compared with the first one. A run is read from the ``predictions.parquet`` of its report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from polyhead.schema import HeadKind
from polyhead_training.errors import DataError
from polyhead_training.evaluation.changes import (
    PLACE,
    ChangedLabel,
    ChangedRow,
    as_set,
    changed_labels,
    changed_rows,
    row_gains,
    row_parts,
    shown,
)
from polyhead_training.evaluation.headline import Parts, ratio
from polyhead_training.evaluation.metrics import HEADLINE, LOWER_IS_BETTER
from polyhead_training.evaluation.paired_tests import PairedTest, holm, mcnemar, permutation
from polyhead_training.evaluation.reported_run import ReportedRun, answer_column
from polyhead_training.evaluation.wording import listed, number, quoted, shorten

SIGNIFICANT = 0.05
SEEN = {"train": "was trained", "validation": "was chosen and calibrated"}  # splits
LONGEST_SENTENCE = 600  # characters of a report's own


@dataclass(frozen=True)
class Against:
    """One run against the first one, for one head.

    Attributes:
        p: after the correction for the number of comparisons.
        is_better: None if the difference can be chance.
        better_count, worse_count: rows whose answer got better or worse.
        better, worse: the most telling of them.
    """

    run: str
    test: PairedTest
    p: float
    is_better: bool | None
    sentence: str
    better_count: int
    worse_count: int
    better: list[ChangedRow]
    worse: list[ChangedRow]
    labels: list[ChangedLabel]


@dataclass(frozen=True)
class HeadComparison:
    """One head of all runs.

    Attributes:
        rows: how many rows were compared.
        values: the main metric of each run on these rows.
        notes: sentences about rows and labels that do not fit.
    """

    head: str
    kind: HeadKind
    metric: str
    rows: int
    values: list[float]
    notes: list[str] = field(default_factory=list)
    against: list[Against] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """All heads of all runs.

    Attributes:
        runs: names; the others are compared with the first.
        joined: one sentence: how many rows the runs have in common, and how they were found.
        notes: what could not be compared, and why.
        tests: how many comparisons the p values are corrected for.
    """

    runs: list[str]
    rows: int
    joined: str
    notes: list[str]
    heads: list[HeadComparison]
    tests: int


def compare_runs(runs: Sequence[ReportedRun]) -> Comparison:
    """Compares all runs with the first one.

    Raises:
        DataError: the runs have no row or no head in common.
    """
    runs, notes = _held_out(runs)
    tables, how = _joined(runs)
    rows = len(tables[0])
    names = [run.name for run in runs]
    notes += _split_notes(runs, tables)
    texts = [table["text"].tolist() for table in tables]
    if differing := sum(len(set(row)) > 1 for row in zip(*texts, strict=True)):
        notes.append(f"In {_rows(differing)} the runs read different texts: another template, or the file was changed.")
    shared, unlike = _shared_heads(runs)
    notes += unlike
    if not shared:
        each = "; ".join(f"{run.name} has {_listed(run.heads)}" for run in runs)
        raise DataError(f"the runs have no head in common: {each}")
    prepared = [_prepare(name, kind, runs, tables) for name, kind in shared.items()]
    drafts = [(*one, [_test(one[0].kind, one[1][0], other) for other in one[1][1:]]) for one in prepared]
    corrected = iter(holm([test.p for _, _, _, tests in drafts for test in tests]))
    count = sum(len(tests) for _, _, _, tests in drafts)
    if not count:
        raise DataError("nothing can be compared: " + " ".join(note for head, *_ in drafts for note in head.notes))
    heads = []
    for head, parts, kept, tests in drafts:
        for place, test in enumerate(tests, 1):
            head.against.append(_against(head, names, place, test, next(corrected), count, parts, kept))
        heads.append(head)
    others = ", ".join(f"{run.name} {len(run.table):,}" for run in runs)
    joined = f"{rows:,} rows are in all runs, joined by {how} ({others})."
    return Comparison(names, rows, joined, notes, heads, count)


def _held_out(runs: Sequence[ReportedRun]) -> tuple[list[ReportedRun], list[str]]:
    """The runs without rows that a model was trained or chosen on, if all have others; and a sentence about it.

    Similar rows are left out beside test rows, which are unlike them.
    """
    runs = [_without_similar(run) for run in runs]
    kept = [
        replace(run, table=run.table[~run.table["split"].isin(SEEN)] if "split" in run.table else run.table)
        for run in runs
    ]
    left_out = {run.name: len(run.table) - len(rest.table) for run, rest in zip(runs, kept, strict=True)}
    if not any(left_out.values()) or not all(len(run.table) for run in kept):
        return list(runs), []
    each = ", ".join(f"{count:,} of {name}" for name, count in left_out.items() if count)
    return kept, [f"Rows on which a model was trained or chosen are left out: {each}."]


def _without_similar(run: ReportedRun) -> ReportedRun:
    if "split" not in run.table or not (run.table["split"] == "test").any():
        return run
    return replace(run, table=run.table[run.table["split"] != "similar"])


def _joined(runs: Sequence[ReportedRun]) -> tuple[list[pandas.DataFrame], str]:
    """Each run's rows that all runs have, in one order; and how they were found."""
    keys: list[tuple[list[str], str]] = []
    if all(set(PLACE) <= set(run.table.columns) for run in runs):
        keys.append((PLACE, "file and row"))
    keys.append((["text", "repeat"], "text"))
    for key, how in keys:
        found = [_indexed(run.table, key) for run in runs]
        common = found[0].index
        for table in found[1:]:
            common = common[common.isin(table.index)]
        if len(common):
            return [table.loc[common].reset_index(drop=True) for table in found], how
    raise DataError(
        "the runs have no row in common: they evaluated different texts "
        f"({', '.join(f'{run.name} {len(run.table):,} rows' for run in runs)}); evaluate them on the same file with "
        "polyhead-evaluate"
    )


def _indexed(table: pandas.DataFrame, key: list[str]) -> pandas.DataFrame:
    """The table by its key. A text that stands in several rows is told apart by its order; a place is unique."""
    if "repeat" in key:
        table = table.assign(repeat=table.groupby("text").cumcount())
    return table.drop_duplicates(key).set_index(key, drop=False)


def _split_notes(runs: Sequence[ReportedRun], tables: Sequence[pandas.DataFrame]) -> list[str]:
    notes = []
    for run, table in zip(runs, tables, strict=True):
        splits = table["split"].value_counts() if "split" in table else {}
        for split, what in SEEN.items():
            if split in splits:
                count = int(splits[split])
                notes.append(f"{run.name} {what} on {_rows(count)} of these, so its scores there are too good.")
        if "evaluation" in splits and run.measured_on:  # the report knows whether the model was trained on its file
            notes.append(f"{run.name}: {shorten(run.measured_on, LONGEST_SENTENCE)}")
    return notes


def _shared_heads(runs: Sequence[ReportedRun]) -> tuple[dict[str, HeadKind], list[str]]:
    """The heads that all runs have with one kind, and sentences about the others."""
    names = list(dict.fromkeys(name for run in runs for name in run.heads))
    shared, notes = {}, []
    for name in names:
        having = [run for run in runs if name in run.heads]
        kinds = {run.heads[name] for run in having}
        if len(having) < len(runs):
            notes.append(f"Head {name!r} is not compared: only {_listed(r.name for r in having)} has it.")
        elif len(kinds) > 1:
            each = ", ".join(f"{run.heads[name]} in {run.name}" for run in runs)
            notes.append(f"Head {name!r} is not compared: it is {each}.")
        else:
            shared[name] = kinds.pop()
    return shared, notes


def _prepare(
    name: str, kind: HeadKind, runs: Sequence[ReportedRun], tables: Sequence[pandas.DataFrame]
) -> tuple[HeadComparison, list[Parts], list[pandas.DataFrame]]:
    """The head's values, each run's parts per row, and each run's rows that can be compared."""
    notes = []
    true = [_true_values(table[f"{name}_true"], kind) for table in tables]
    known = np.array([[value is not None for value in column] for column in true])  # (runs, rows)
    usable, anywhere = (np.asarray(of(known, axis=0), dtype=np.bool_) for of in (np.all, np.any))
    for run, column in zip(runs, known, strict=True):
        unknown = np.logical_and(anywhere, np.logical_not(column))
        if missing := int(unknown.sum()):
            lost = _labels_of(true, unknown)
            named = f" ({_listed(lost)})" if lost else ""
            notes.append(f"{_rows(missing)} left out: {run.name} has no known label there{named}.")
    same = np.array([all(column[i] == true[0][i] for column in true) for i in range(len(usable))], np.bool_)
    unlike = np.flatnonzero(np.logical_and(usable, np.logical_not(same)))
    if differing := len(unlike):
        place = int(unlike[0])
        example = " and ".join(shown(column[place]) for column in true)
        notes.append(f"{_rows(differing)} left out: the runs have different labels there, for example {example}.")
    usable = np.logical_and(usable, same)
    rows = int(usable.sum())
    for table in tables:
        usable = np.logical_and(usable, _are_answers(table[answer_column(name, kind)], kind))
    if failed := rows - int(usable.sum()):
        notes.append(f"{_rows(failed)} left out: not every run could answer them.")
    notes += _label_notes(name, runs)
    kept = [table[usable].reset_index(drop=True) for table in tables]
    parts = [row_parts(table, name, kind) for table in kept] if usable.any() else []
    if not parts:
        notes.append("No row has a known label and an answer in all runs, so the head is not compared.")
    values = [float(ratio(part.sum(axis=0))) for part in parts]
    return HeadComparison(name, kind, HEADLINE[kind], int(usable.sum()), values, notes), parts, kept


def _true_values(column: pandas.Series, kind: HeadKind) -> list[Any]:
    """Comparable values; None if unknown."""
    match kind:
        case HeadKind.SINGLE_LABEL:
            return [value if isinstance(value, str) else None for value in column]
        case HeadKind.MULTI_LABEL:
            return [None if value is None else frozenset(value) for value in column]
        case HeadKind.REGRESSION:
            return [float(value) if pandas.notna(value) and np.isfinite(value) else None for value in column]


def _are_answers(column: pandas.Series, kind: HeadKind) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = column.notna().to_numpy(bool)
    if kind == HeadKind.REGRESSION:
        found = np.isfinite(column.to_numpy(np.float64, na_value=np.nan))
    return found


def _test(kind: HeadKind, first: Parts, second: Parts) -> PairedTest:
    if kind == HeadKind.SINGLE_LABEL:
        return mcnemar(first[:, 0] == 1, second[:, 0] == 1)
    return permutation(first, second)


def _against(
    head: HeadComparison, names: Sequence[str], place: int, test: PairedTest, p: float, tests: int,
    parts: Sequence[Parts], tables: Sequence[pandas.DataFrame],
) -> Against:  # fmt: skip
    gain = -test.difference if head.metric in LOWER_IS_BETTER else test.difference
    is_better = (gain > 0) if p < SIGNIFICANT and gain else None
    before, after = tables[0], tables[place]
    gains = row_gains(head.kind, parts[0], parts[place])
    # Not by the gains: a missing label and one too many are both one mistake, but count differently in F1.
    are_equal = np.array_equal(parts[0], parts[place])
    better, worse = changed_rows(head.head, head.kind, before, after, gains)
    return Against(
        run=names[place],
        test=test,
        p=p,
        is_better=is_better,
        sentence=_sentence(head, names[0], names[place], head.values[place], test, p, tests, is_better, are_equal),
        better_count=int((gains > 0).sum()),
        worse_count=int((gains < 0).sum()),
        better=better,
        worse=worse,
        labels=changed_labels(head.head, head.kind, before, after),
    )


def _sentence(
    head: HeadComparison, first: str, second: str, value: float, test: PairedTest, p: float, tests: int,
    is_better: bool | None, are_equal: bool,
) -> str:  # fmt: skip
    if are_equal:
        return f"{first} and {second} are equally good on each of the {_rows(test.rows)}."
    name = head.metric.replace("_", " ")
    numbers = (
        f"{name} {number(value)} against {number(head.values[0])}: {_signed(test.difference)} "
        f"(95 % interval {_signed(test.low)} to {_signed(test.high)}; {test.name}, n = {test.rows:,}, {_p(test.p)}"
    )
    if tests > 1:
        numbers += f", {_p(p)} after Holm's correction for {tests} comparisons"
    numbers += ")."
    if is_better is not None:
        return f"{second} is {'better' if is_better else 'worse'} than {first}: {numbers}"
    return (
        f"No evidence that {second} is better or worse than {first}; the difference can be chance: {numbers} "
        f"These rows cannot show differences much below {number((test.high - test.low) / 2)}."
    )


def _label_notes(name: str, runs: Sequence[ReportedRun]) -> list[str]:
    """Says which labels only some of the runs know."""
    known = {run.name: run.labels[name] for run in runs if run.labels.get(name)}
    notes = []
    for run, labels in known.items():
        others = dict.fromkeys(label for other in known.values() for label in other)
        if missing := [label for label in others if label not in set(labels)]:
            notes.append(f"{run} cannot answer {_listed(missing)}, because it does not know {_them(missing)}.")
    return notes


def _labels_of(columns: Sequence[Sequence[Any]], rows: NDArray[np.bool_]) -> list[str]:
    found: dict[str, None] = {}
    for row in np.flatnonzero(rows).tolist():
        for column in columns:
            if isinstance(column[row], str | frozenset):
                found.update(dict.fromkeys(sorted(as_set(column[row]))))
    return list(found)


def _listed(names: Any) -> str:
    return listed([quoted(str(name)) for name in names])


def _them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + number(abs(value))


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
