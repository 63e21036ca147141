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
from polyhead_client.explanation import Explanation, PartEffect, Reason
from polyhead_client.prediction import LabelScore, MultiLabel, Prediction, Regression, SingleLabel
from polyhead_client.retry import RetryPolicy
from polyhead_client.schema import HeadKind, HeadSchema, ModelSchema
from polyhead_client.settings import Tls

__all__ = [
    "AsyncClient",
    "BadResponseError",
    "Client",
    "Explanation",
    "HeadKind",
    "HeadSchema",
    "LabelScore",
    "ModelNotFoundError",
    "ModelSchema",
    "MultiLabel",
    "NotReadyError",
    "PartEffect",
    "PolyheadClientError",
    "Prediction",
    "Reason",
    "Regression",
    "RequestRejectedError",
    "RequestTimeoutError",
    "RetryPolicy",
    "ServerFailedError",
    "ServerOverloadedError",
    "ServerUnreachableError",
    "SingleLabel",
    "TextError",
    "Tls",
    "UnknownNameError",
    "UsageError",
]
