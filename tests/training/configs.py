"""A training config for tests that train on no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyhead_training.config import DataConfig, FitConfig, HeadConfig, ModelConfig, TrainingConfig


def config_of(folder: Path, model: ModelConfig | None = None, **training: Any) -> TrainingConfig:
    """A config whose data is never read."""
    return TrainingConfig(
        output=folder,
        data=DataConfig(train="rows.csv"),
        model=model or ModelConfig(),
        heads=[HeadConfig(name="a", kind="regression")],
        training=FitConfig(**training),
    )
