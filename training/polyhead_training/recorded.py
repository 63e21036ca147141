"""What a checkpoint records of its training. It may come from anyone, so nothing of it is trusted."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from polyhead.checkpoint_files import read_json, read_text
from polyhead.errors import CheckpointError, describe
from polyhead_rows.spelling import shortened
from polyhead_training.config import TrainingConfig
from polyhead_training.errors import ConfigError

if TYPE_CHECKING:
    from polyhead_training.evaluation.baselines import Constant

NAME_LENGTH = 200  # characters of the names of files


class _Logged(BaseModel, extra="allow"):
    """An entry of ``history.json``."""

    epoch: float
    __pydantic_extra__: dict[str, float]


class _Sources(BaseModel, extra="ignore"):
    """The files of ``training.json``."""

    train: str | list[str] | None = None
    validation: str | list[str] | None = None
    test: str | list[str] | None = None


class _Recorded(BaseModel, extra="ignore"):
    """What is needed of ``training.json``."""

    data: _Sources


class _Shifted(BaseModel, extra="ignore"):
    """A head's shift in ``metrics.json``."""

    similar: dict[str, FiniteFloat]


class _Calibrated(BaseModel):
    """A head's calibration in ``metrics.json``."""

    rows: int = 0
    temperature: FiniteFloat
    thresholds: dict[str, FiniteFloat] = {}
    reject_below: FiniteFloat | None = None
    reject_by: str = "score"
    before: dict[str, FiniteFloat]
    after: dict[str, FiniteFloat]
    notes: list[str] = []


def recorded_config(path: Path) -> TrainingConfig:
    """The config of the checkpoint's training. Nothing that it names is imported or called.

    Raises:
        ConfigError: it is damaged, or names a function that evaluation would call.
    """
    try:
        training = TrainingConfig.model_validate_json(read_text(path), context={"is_recorded": True})
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    named = {"data.text_transforms": training.data.text_transforms, "data.filters": training.data.filters} | {
        f"heads.{head.name}.label_transforms": head.label_transforms for head in training.heads
    }
    for field, names in named.items():
        if functions := [name for name in names if ":" in name]:
            raise ConfigError(
                f"{path}: {field} names the function {functions[0]!r}; code that a checkpoint names is not run, "
                "so give your own training config with --config"
            )
    if files := [head.name for head in training.heads if isinstance(head.names, str)]:
        raise ConfigError(
            f"{path}: heads.{files[0]}.names names a file; a file that a checkpoint names is not read, so give your "
            "own training config with --config"
        )
    return training.model_copy(update={"data": training.data.model_copy(update={"augment": []})})


def recorded_training(checkpoint: Path) -> dict[str, Any]:
    """``history``, ``calibration`` and ``training`` for `write_report`; None or empty if they are malformed."""
    metrics = _metrics(checkpoint)
    training = _valid(dict[str, Any], metrics.get("training")) or {}
    return {
        "history": _valid(list[_Logged], _read_json(checkpoint / "report" / "history.json")),
        "calibration": _valid(dict[str, _Calibrated], metrics.get("calibration")),
        "training": {key: value for key, value in training.items() if isinstance(value, int | float)},
    }


def recorded_constants(checkpoint: Path) -> dict[str, Constant]:
    """The best constant answers on the training rows; empty if the checkpoint has none, or if they are malformed."""
    from polyhead_training.evaluation.baselines import Constant  # scikit-learn takes a second to import

    try:
        return TypeAdapter(dict[str, Constant]).validate_python(_metrics(checkpoint).get("constants") or {})
    except ValidationError:
        return {}


def recorded_similar(checkpoint: Path) -> dict[str, dict[str, float]] | None:
    """By head, what was reached on rows like those that were trained on; None if the training did not measure it."""
    shift = _valid(dict[str, _Shifted], _metrics(checkpoint).get("shift"))
    return None if not shift else {head: found["similar"] for head, found in shift.items() if found["similar"]}


def measured_on(checkpoint: Path, data: Sequence[str], files: Collection[str], rows: int) -> str:
    """One sentence: on which rows the scores are measured; and a warning if the training was given the same files.

    Args:
        data: what the user named.
        files: the files that were read.
    """
    measured = f"Measured on {rows:,} rows of {shortened(', '.join(data), NAME_LENGTH)}."
    training = _valid(_Recorded, _read_json(checkpoint / "report" / "training.json")) or {}
    for use in ("train", "validation", "test"):
        names = training.get("data", {}).get(use) or []
        names = [names] if isinstance(names, str) else names
        if any(_is_named(file, name) for file in files for name in names):
            if use == "test":
                return f"{measured} The training had this file as its test rows, on which nothing was chosen."
            what = "trained on most of its rows" if use == "train" else "chose its best weights and calibration on it"
            return f"{measured} The training had the same file in data.{use} and {what}, so the scores are too good."
    return f"{measured} Whether the model was trained on some of them is not known."


def _is_named(file: str, name: str) -> bool:
    """Whether a path, glob or folder names the file. Looks at no file."""
    path, pattern = str(Path(file).resolve()), str(Path(name).resolve())
    return path == pattern or fnmatch.fnmatchcase(path, pattern) or path.startswith(pattern + os.sep)


def _valid(kind: Any, content: Any) -> Any:
    adapter = TypeAdapter(kind)
    try:
        return adapter.dump_python(adapter.validate_python(content), exclude_unset=True)
    except ValidationError:
        return None


def _metrics(checkpoint: Path) -> dict[str, Any]:
    return _valid(dict[str, Any], _read_json(checkpoint / "metrics.json")) or {}


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except CheckpointError:
        return None
