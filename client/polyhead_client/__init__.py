"""Typed client for Polyhead classifiers on a Triton server."""

from __future__ import annotations

from polyhead_client.client import Client
from polyhead_client.errors import (
    BadResponseError,
    ModelNotFoundError,
    NotReadyError,
    PolyheadClientError,
    RequestRejectedError,
    RequestTimeoutError,
    ServerFailedError,
    ServerOverloadedError,
    ServerUnreachableError,
    UsageError,
)
from polyhead_client.prediction import LabelScore, MultiLabel, Prediction, Regression, SingleLabel
from polyhead_client.schema import HeadSchema, Schema

__all__ = [
    "BadResponseError",
    "Client",
    "HeadSchema",
    "LabelScore",
    "ModelNotFoundError",
    "MultiLabel",
    "NotReadyError",
    "PolyheadClientError",
    "Prediction",
    "Regression",
    "RequestRejectedError",
    "RequestTimeoutError",
    "Schema",
    "ServerFailedError",
    "ServerOverloadedError",
    "ServerUnreachableError",
    "SingleLabel",
    "UsageError",
]
