"""Typed client for Polyhead classifiers on a Triton server."""

from __future__ import annotations

from polyhead_client.async_client import AsyncClient
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
    TextError,
    UnknownNameError,
    UsageError,
)
from polyhead_client.network import Tls
from polyhead_client.prediction import LabelScore, MultiLabel, Prediction, Regression, SingleLabel
from polyhead_client.retry import RetryPolicy
from polyhead_client.schema import HeadSchema, Schema
from polyhead_client.statistics import ModelStatistics

__all__ = [
    "AsyncClient",
    "BadResponseError",
    "Client",
    "HeadSchema",
    "LabelScore",
    "ModelNotFoundError",
    "ModelStatistics",
    "MultiLabel",
    "NotReadyError",
    "PolyheadClientError",
    "Prediction",
    "Regression",
    "RequestRejectedError",
    "RequestTimeoutError",
    "RetryPolicy",
    "Schema",
    "ServerFailedError",
    "ServerOverloadedError",
    "ServerUnreachableError",
    "SingleLabel",
    "TextError",
    "Tls",
    "UnknownNameError",
    "UsageError",
]
