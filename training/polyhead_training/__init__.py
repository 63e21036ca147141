"""Training of Polyhead classifiers: from texts and labels to a self-describing checkpoint.

From Python: `train`, `evaluate`, `Run` and the errors. They are imported when they are first used, because torch and
transformers take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyhead_training.config import TrainingConfig
    from polyhead_training.errors import ConfigError, DataError, Interrupted, TrainingError
    from polyhead_training.evaluation.evaluation import Evaluation
    from polyhead_training.run import Run, evaluate, train

__all__ = [
    "ConfigError", "DataError", "Evaluation", "Interrupted", "Run", "TrainingConfig", "TrainingError", "evaluate",
    "train",
]  # fmt: skip

_HOMES = {
    "ConfigError": "errors",
    "DataError": "errors",
    "Evaluation": "evaluation.evaluation",
    "Interrupted": "errors",
    "Run": "run",
    "TrainingConfig": "config",
    "TrainingError": "errors",
    "evaluate": "run",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
