"""Polyhead as a user trains it: the config that the data set's example has, with other files, output and seed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from benchmarks.quality.answers import Answer, Answers, numbers
from benchmarks.quality.data_sets import ROOT, TEST, TRAIN, VALIDATION, DataSet, Label, LabelledRow
from polyhead.predictor import Predictor
from polyhead.schema import Head, HeadKind

# What --rehearse replaces: the run then takes seconds, and its scores mean nothing.
TINY_GPT2 = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 300}
TINY_STEPS = 2


class ProductError(Exception):
    """The product read other rows or labels than the benchmark."""


def write_config(
    path: Path, data_set: DataSet, source: Path, data: Path, output: Path, seed: int, rehearse: bool
) -> None:
    """Writes the training config of one run.

    Args:
        source: the folder of the public files; the config's file names that are no part's stand for files in it.
        data: the folder with a file per part.
        rehearse: trains a tiny network for a few steps.
    """
    config = tomllib.loads((ROOT / data_set.config).read_text(encoding="utf-8"))

    def replaced(value: Any) -> Any:
        """The value with the benchmark's files."""
        if isinstance(value, dict):
            return {key: replaced(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [replaced(inner) for inner in value]
        name = Path(value).name if isinstance(value, str) else ""
        if name in data_set.parts_of:
            return str(part_file(data, data_set, data_set.parts_of[name]))
        file, *part = name.split("#")
        return "#".join([str((source / file).resolve()), *part]) if file and (source / file).is_file() else value

    config = replaced(config)
    config |= {"output": str(output), "seed": seed}
    files = {part: str(part_file(data, data_set, part)) for part in (TRAIN, VALIDATION, TEST)}
    if files[TRAIN] in config["data"][TRAIN]:  # as replaced; beside it, texts out of scope
        files[TRAIN] = config["data"][TRAIN]
    config["data"] |= files
    if rehearse:
        model = config.setdefault("model", {})
        model["gpt2"] = model.get("gpt2", {}) | TINY_GPT2
        config["training"] = config.get("training", {}) | {"max_steps": TINY_STEPS}
    path.write_text("".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in config.items()), encoding="utf-8")


def part_file(data: Path, data_set: DataSet, part: str) -> Path:
    """The file of a part's rows, in the format that the config reads."""
    return data.resolve() / f"rows-{part}{data_set.ending}"


def _toml(value: Any) -> str:
    """A value in one line of TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)  # texts, numbers and truth values are spelled alike


def read_predictions(path: Path, heads: Sequence[Head], rows: Sequence[LabelledRow]) -> Answers:
    """The served answers to the test rows from ``predictions.parquet``.

    Raises:
        ProductError: the true labels there are not those of `rows`.
    """
    table = _test_rows(path)
    places = np.array(table["row"].to_pylist(), dtype=np.int64) - 1
    if len(places) > len(rows) or len(np.unique(places)) < len(places):
        raise ProductError(f"{path}: has {len(places)} test rows of {len(rows)}")
    answers = Answers()
    for head in heads:
        for place, true in zip(places, table[f"{head.name}_true"].to_pylist(), strict=True):
            _check(head, rows[place].labels[head.name], true, f"{path}: head {head.name!r}, test row {place + 1}")
        answers.heads[head.name] = _answer(head, table, places, len(rows))
    return answers


def _test_rows(path: Path) -> Any:
    table = pyarrow.parquet.read_table(path)
    return table.filter(pyarrow.compute.equal(table["split"], TEST))


def _answer(head: Head, table: Any, places: NDArray[np.int64], rows: int) -> Answer:
    """Rows that have no answer stay 0."""
    if head.kind == HeadKind.REGRESSION:
        values = np.zeros(rows)
        values[places] = [0.0 if value is None else value for value in table[f"{head.name}_value"].to_pylist()]
        return numbers(values)
    labels = json.loads(table.schema.field(f"{head.name}_scores").metadata[b"labels"])
    columns = {label: place for place, label in enumerate(labels)}
    order = [columns.get(label, -1) for label in head.labels]  # -1: the model never saw this label
    scores, chosen = np.zeros((rows, head.width), np.float32), np.zeros((rows, head.width), np.int8)
    column = f"{head.name}_label" if head.kind == HeadKind.SINGLE_LABEL else f"{head.name}_labels"
    found = zip(places, table[f"{head.name}_scores"].to_pylist(), table[column].to_pylist(), strict=True)
    for place, row, answer in found:
        if row is not None:
            scores[place] = np.append(row, 0.0)[order]
        for label in [answer] if isinstance(answer, str) else answer or []:
            if label in head.index_of:
                chosen[place, head.index_of[label]] = 1
    return Answer(scores, chosen)


def _check(head: Head, given: Label, true: Any, where: str) -> None:
    match head.kind:
        case HeadKind.SINGLE_LABEL:
            is_same = given == true or (given is None and true is None)
        case HeadKind.MULTI_LABEL:
            is_same = true is not None and isinstance(given, list) and sorted(set(given)) == sorted(true)
        case HeadKind.REGRESSION:
            is_same = given is not None and np.isclose(float(str(given)), float(true))
    if not is_same:
        raise ProductError(f"{where}: the product read the label {true!r}, the benchmark {given!r}")


def confidences(predictor: Predictor, texts: Sequence[str], head: str) -> NDArray[np.float32]:
    """What the head's answers are rejected by: their certainty if the checkpoint says so, else their label's score."""
    answers = [answer["heads"][head] for answer in predictor.predict(texts)]
    return np.array([answer.get("certainty", answer["scores"][0]) for answer in answers], np.float32)
