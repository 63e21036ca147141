"""What a checkpoint records about its training. The checkpoint may come from anyone, so nothing in it is trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from polyhead.errors import describe
from polyhead_training.config import TrainingConfig
from polyhead_training.errors import ConfigError


class _Logged(BaseModel, extra="allow"):
    """An entry of ``history.json``."""

    epoch: float
    __pydantic_extra__: dict[str, float]


class _Calibrated(BaseModel):
    """A head's calibration in ``metrics.json``."""

    rows: int = 0
    temperature: FiniteFloat
    thresholds: dict[str, FiniteFloat] = {}
    before: dict[str, FiniteFloat]
    after: dict[str, FiniteFloat]


def recorded_config(path: Path) -> TrainingConfig:
    """The config of the checkpoint's training. Nothing that it names is imported or called.

    Raises:
        ConfigError: it is damaged, or names a function that evaluation would call.
    """
    try:
        training = TrainingConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
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
    return training.model_copy(update={"data": training.data.model_copy(update={"augment": []})})


def recorded_training(checkpoint: Path) -> dict[str, Any]:
    """``history``, ``calibration`` and ``training`` for `write_report`; None or empty if they are malformed."""
    metrics = _read_json(checkpoint / "metrics.json")
    metrics = metrics if isinstance(metrics, dict) else {}
    training = _valid(dict[str, Any], metrics.get("training")) or {}
    return {
        "history": _valid(list[_Logged], _read_json(checkpoint / "report" / "history.json")),
        "calibration": _valid(dict[str, _Calibrated], metrics.get("calibration")),
        "training": {key: value for key, value in training.items() if isinstance(value, int | float)},
    }


def _valid(kind: Any, content: Any) -> Any:
    adapter = TypeAdapter(kind)
    try:
        return adapter.dump_python(adapter.validate_python(content), exclude_unset=True)
    except ValidationError:
        return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
