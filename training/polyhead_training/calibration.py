"""Calibration fitted on validation logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.schema import Schema
from polyhead_training.config import CalibrationConfig


def calibrate(
    logits: NDArray[np.float32], labels: NDArray[np.float32], schema: Schema, config: CalibrationConfig
) -> tuple[Schema, dict[str, Any]]:
    """The schema as it is."""
    return schema, {}
