"""From logits to calibrated scores, and from scores to the answer that a user reads. Only this module decodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyhead.errors import OptionError, describe
from polyhead.schema import Head, HeadKind, Schema

Scores = NDArray[np.float32]


class DecodeOptions(BaseModel):
    """The options of a request.

    Attributes:
        top_k: a single_label head names this many labels (default 1), a multi_label head at most this many.
        threshold: replaces the thresholds of all labels in all multi_label heads.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    top_k: int | None = Field(default=None, ge=1)
    threshold: float | None = Field(default=None, ge=0, le=1)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> DecodeOptions:
        """Checks request parameters.

        Raises:
            OptionError: an unknown parameter, or a value of the wrong type or range.
        """
        try:
            return cls.model_validate(dict(parameters))
        except ValidationError as error:
            raise OptionError(
                f"request parameter {describe(error)}; allowed are {', '.join(cls.model_fields)}"
            ) from error


def to_scores(logits: NDArray[np.floating[Any]], schema: Schema) -> Scores:
    """Calibrated scores of each head: softmax or sigmoid of logits over temperature; a regression's value.

    A regression without `y_range` answers its logit unchanged; with it, a sigmoid between the two ends.

    Args:
        logits: ``(n, schema.width)``.

    Returns:
        float32 ``(n, schema.width)``; computed in float64, so that a head's scores do not depend on other heads.
    """
    scores = np.empty(logits.shape, dtype=np.float32)
    for head in schema:
        columns = schema.columns[head.name]
        scaled = logits[:, columns].astype(np.float64) / head.temperature
        match head.kind:
            case HeadKind.SINGLE_LABEL:
                exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
                scores[:, columns] = exponents / exponents.sum(axis=1, keepdims=True)
            case HeadKind.MULTI_LABEL:
                scores[:, columns] = _sigmoid(scaled)
            case HeadKind.REGRESSION if head.y_range is not None:
                lowest, highest = head.y_range
                scores[:, columns] = lowest + (highest - lowest) * _sigmoid(scaled)
            case HeadKind.REGRESSION:
                scores[:, columns] = logits[:, columns]
    return scores


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Never overflows."""
    result: NDArray[np.float64] = np.exp(-np.logaddexp(0, -values))
    return result


def decode(scores: Scores, schema: Schema, options: DecodeOptions) -> dict[str, dict[str, Any]]:
    """The answer of each head for one text.

    Args:
        scores: float32 ``(schema.width,)``.

    Returns:
        By head name: ``kind``, and ``labels`` with ``scores``, best first (multi_label also ``thresholds``), or
        ``value`` for a regression. Heads of a taxonomy name the most probable path, so no label contradicts its parent.
    """
    path = best_paths(scores, schema)
    return {head.name: _decode_head(head, scores[schema.columns[head.name]], path, options) for head in schema}


def over_threshold(scores: Scores, thresholds: Sequence[float]) -> NDArray[np.bool_]:
    """Which labels of a multi_label head are part of the answer, for scores ``(…, labels)``.

    Compares in float64, because NumPy 1 and 2 compare a float32 with a Python float differently.
    """
    over: NDArray[np.bool_] = scores.astype(np.float64) >= np.asarray(thresholds, dtype=np.float64)
    return over


def best_paths(scores: Scores, schema: Schema) -> dict[str, int]:
    """For each head of a taxonomy, the index of its label on the most probable consistent path.

    Max-product over the tree of heads: a label's worth is its own score times the worth of its best children.
    """
    path: dict[str, int] = {}

    def worth(head: Head) -> NDArray[np.float64]:
        total: NDArray[np.float64] = np.log(np.maximum(scores[schema.columns[head.name]].astype(np.float64), 1e-300))
        for child in schema.children(head.name):
            below = worth(child)
            total = total + np.array([below[_children(child, label)].max() for label in head.labels])
        return total

    def descend(head: Head, allowed: list[int]) -> None:
        chosen = max(allowed, key=lambda index: worths[head.name][index])
        path[head.name] = chosen
        for child in schema.children(head.name):
            descend(child, _children(child, head.labels[chosen]))

    worths = {head.name: worth(head) for head in schema if head.parent is not None or schema.children(head.name)}
    for root in schema.children(None):
        if root.name in worths:
            descend(root, list(range(len(root.labels))))
    return path


def _children(child: Head, parent_label: str) -> list[int]:
    parent_of = child.parent_of or {}
    return [index for index, label in enumerate(child.labels) if parent_of[label] == parent_label]


def _decode_head(head: Head, scores: Scores, path: Mapping[str, int], options: DecodeOptions) -> dict[str, Any]:
    if head.kind == HeadKind.REGRESSION:
        return {"kind": head.kind, "value": float(scores[0])}
    # Stable: if scores are equal, the label with the lower index comes first, on every machine.
    order = np.argsort(-scores, kind="stable")
    if head.kind == HeadKind.SINGLE_LABEL:
        if head.name in path:
            order = np.concatenate(([path[head.name]], order[order != path[head.name]]))
        best = order[: options.top_k or 1]
        return {"kind": head.kind, "labels": [head.labels[i] for i in best], "scores": [float(scores[i]) for i in best]}
    assert head.thresholds is not None  # the schema gives every multi_label head its thresholds
    thresholds = head.thresholds if options.threshold is None else (options.threshold,) * len(head.labels)
    over = over_threshold(scores, thresholds)
    chosen = [i for i in order if over[i]][: options.top_k]
    return {
        "kind": head.kind,
        "labels": [head.labels[i] for i in chosen],
        "scores": [float(scores[i]) for i in chosen],
        "thresholds": [thresholds[i] for i in chosen],
    }
