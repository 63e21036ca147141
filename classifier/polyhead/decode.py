"""From logits to calibrated scores, and from scores to the answer that a user reads. Only this module decodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyhead.errors import OptionError, describe
from polyhead.schema import NO_SCORE, Head, HeadKind, Schema

Scores = NDArray[np.float32]


class DecodeOptions(BaseModel):
    """The options of a request.

    Attributes:
        top_k: a single_label head names this many labels (default 1), a multi_label head at most this many.
        threshold: replaces the thresholds of all labels in all multi_label heads.
        reject_below: replaces that of all single_label heads; 0 rejects nothing.
        private: the answer log leaves the texts of this request out; it changes no answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    top_k: int | None = Field(default=None, ge=1)
    threshold: float | None = Field(default=None, ge=0, le=1)
    reject_below: float | None = Field(default=None, ge=0, le=1)
    private: bool = False

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

    A regression's value is its logit in the unit of the training data (`Head.target_scale`), clipped to `y_range`.
    Without a target_scale it is the logit itself or, with `y_range`, a sigmoid between the two ends.

    Args:
        logits: ``(n, schema.width)``.

    Returns:
        float32 ``(n, schema.width)``; computed in float64, so that a head's scores do not depend on other heads. A text
        with a logit that is not finite has NaN in all columns, because a sigmoid would hide that the model overflowed.
    """
    scores = np.empty(logits.shape, dtype=np.float32)
    finite = np.isfinite(logits).all(axis=1)
    logits = np.where(finite[:, None], logits, 0)
    with np.errstate(over="ignore"):  # a tiny temperature: infinite, and still a score of 0 or 1
        for head in schema:
            columns = schema.columns[head.name]
            given = logits[:, columns].astype(np.float64)
            match head.kind:
                case HeadKind.SINGLE_LABEL:
                    exponents = np.exp((given - given.max(axis=1, keepdims=True)) / head.temperature)
                    scores[:, columns] = exponents / exponents.sum(axis=1, keepdims=True)
                case HeadKind.MULTI_LABEL:
                    scores[:, columns] = _sigmoid(given / head.temperature)
                case HeadKind.REGRESSION if head.target_scale is not None:
                    center, spread = head.target_scale
                    values = center + spread * given
                    scores[:, columns] = values if head.y_range is None else values.clip(*head.y_range)
                case HeadKind.REGRESSION if head.y_range is not None:
                    lowest, highest = head.y_range
                    scores[:, columns] = lowest + (highest - lowest) * _sigmoid(given / head.temperature)
                case HeadKind.REGRESSION:
                    scores[:, columns] = given
    scores[~finite] = np.nan
    return scores


def are_answers(scores: Scores) -> NDArray[np.bool_]:
    """Which rows of scores ``(n, schema.width)`` have an answer: all scores are finite and none is NO_SCORE.

    A row without one belongs to a text with an error, or to a text for which the model's numbers overflowed.
    """
    have: NDArray[np.bool_] = np.asarray((np.isfinite(scores) & (scores > NO_SCORE)).all(axis=-1))
    return have


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Never overflows."""
    result: NDArray[np.float64] = np.exp(-np.logaddexp(0, -values))
    return result


def decode(scores: Scores, schema: Schema, options: DecodeOptions) -> dict[str, dict[str, Any]]:
    """The answer of each head for one text, whose scores are float32 ``(schema.width,)``; see `decode_all`."""
    return decode_all(scores[None], schema, options)[0]


def decode_all(scores: Scores, schema: Schema, options: DecodeOptions) -> list[dict[str, dict[str, Any]]]:
    """The answer of each head for each text; several texts take a third of the time that they take one by one.

    Args:
        scores: float32 ``(n, schema.width)``.

    Returns:
        Per text, by head name: ``kind``, and ``labels`` with ``scores``, best first (multi_label also ``thresholds``),
        or ``value`` for a regression. Heads of a taxonomy name the most probable path, so no label contradicts its
        parent. A head that may reject also has ``label``: the first of its ``labels``, or None if it is rejected; and,
        if its `Head.reject_by` says so, its ``certainty``.
    """
    path = best_paths(scores, schema)
    by_head = {
        head.name: _decode_head(head, scores[:, schema.columns[head.name]], path.get(head.name), options)
        for head in schema
    }
    if options.reject_below is not None or schema.rejecting_heads:
        _reject(by_head, scores, schema, options)
    return [dict(zip(by_head, answers, strict=True)) for answers in zip(*by_head.values(), strict=True)]


def _reject(by_head: dict[str, list[dict[str, Any]]], scores: Scores, schema: Schema, options: DecodeOptions) -> None:
    """Adds what `decode_all` says of heads that may reject."""
    confidence = {
        head.name: np.array([answer["scores"][0] for answer in by_head[head.name]])
        if head.reject_by == "score"
        else certainty(scores[:, schema.columns[head.name]])
        for head in schema.single_label_heads
    }
    for name, are_rejected in rejected(confidence, schema, options.reject_below).items():
        by_head[name] = [
            {"kind": answer.pop("kind"), "label": None if is_rejected else answer["labels"][0], **answer}
            for answer, is_rejected in zip(by_head[name], are_rejected.tolist(), strict=True)
        ]
        if schema[name].reject_by == "certainty":
            for answer, sure in zip(by_head[name], confidence[name].tolist(), strict=True):
                answer["certainty"] = sure


def certainty(scores: Scores) -> NDArray[np.float64]:
    """One over the number of labels that the scores ``(…, labels)`` are spread over: 1 / (sum of their roots)².

    1 if one label has the whole score, 1/n if n labels share it alike. (The exponential of the Rényi entropy of order
    1/2.) Rounded to 6 digits, so that it is the same number on every machine.
    """
    roots = np.sqrt(np.maximum(scores, 0).astype(np.float64)).sum(axis=-1)
    found: NDArray[np.float64] = np.round(1 / np.maximum(roots, 1.0) ** 2, 6)
    return found


def rejected(
    confidence: Mapping[str, Any], schema: Schema, reject_below: float | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Which answers are rejected, by the heads that may reject: those with a `Head.reject_below`, and all below them.

    A rejected head rejects the heads below it, because a path of a taxonomy cannot go on after a level without a label.

    Args:
        confidence: by single_label head: what its `Head.reject_by` names, of one text or of several ``(n,)``.
        reject_below: replaces that of all heads.
    """
    found: dict[str, NDArray[np.bool_]] = {}
    for head in schema.single_label_heads:  # parents first
        least = head.reject_below if reject_below is None else reject_below
        above = None if head.parent is None else found.get(head.parent)
        if least is not None:
            own = ~over_threshold(np.asarray(confidence[head.name]), least)
            found[head.name] = own if above is None else own | above
        elif above is not None:
            found[head.name] = above
    return found


def over_threshold(scores: Scores, thresholds: Sequence[float] | float) -> NDArray[np.bool_]:
    """Which scores ``(…, labels)`` reach their thresholds.

    Compares in float64, because NumPy 1 and 2 compare a float32 with a Python float differently.
    """
    over: NDArray[np.bool_] = scores.astype(np.float64) >= np.asarray(thresholds, dtype=np.float64)
    return over


def best_paths(scores: Scores, schema: Schema) -> dict[str, NDArray[np.intp]]:
    """For each head of a taxonomy, the index of its label on the most probable consistent path.

    Max-product over the tree of heads: a label's worth is its own score times the worth of its best children.

    Args:
        scores: ``(…, schema.width)``.
    """
    heads = [head for head in schema.single_label_heads if head.parent is not None or schema.children(head.name)]
    worths: dict[str, NDArray[np.float64]] = {}
    for head in reversed(heads):  # children first
        worth = np.log(np.maximum(scores[..., schema.columns[head.name]].astype(np.float64), 1e-300))
        for child in schema.children(head.name):
            below = schema.child_order[child.name]
            worth = worth + np.maximum.reduceat(worths[child.name][..., below.labels], below.starts, axis=-1)
        worths[head.name] = worth
    path: dict[str, NDArray[np.intp]] = {}
    for head in heads:
        worth = worths[head.name]
        if head.parent is not None:
            is_below = schema.child_order[head.name].parents == path[head.parent][..., None]
            worth = np.where(is_below, worth, -np.inf)
        path[head.name] = np.asarray(worth.argmax(axis=-1))
    return path


def best_labels(scores: Scores, schema: Schema) -> dict[str, NDArray[np.intp]]:
    """By single_label head: the index of the label that each row is answered with, if it is not rejected.

    Args:
        scores: ``(n, schema.width)``.
    """
    others = [head for head in schema.single_label_heads if head.parent is None and not schema.children(head.name)]
    return best_paths(scores, schema) | {
        head.name: scores[:, schema.columns[head.name]].argmax(axis=1) for head in others
    }


def confidence_of(best: Mapping[str, NDArray[np.intp]], scores: Scores, schema: Schema) -> dict[str, NDArray[Any]]:
    """By single_label head: what its `Head.reject_by` names: the score of each row's best label, or its certainty."""
    rows = np.arange(len(scores))
    return {
        name: scores[:, schema.columns[name]][rows, labels]
        if schema[name].reject_by == "score"
        else certainty(scores[:, schema.columns[name]])
        for name, labels in best.items()
    }


def _decode_head(
    head: Head, scores: Scores, path: NDArray[np.intp] | None, options: DecodeOptions
) -> list[dict[str, Any]]:
    if head.kind == HeadKind.REGRESSION:
        return [{"kind": head.kind, "value": value} for value in scores[:, 0].tolist()]
    # If scores are equal, the label with the lower index comes first, on every machine.
    if head.kind == HeadKind.SINGLE_LABEL:
        best = (scores.argmax(axis=1) if path is None else path)[:, None]
        if options.top_k is not None:
            order = (-scores).argsort(axis=1, kind="stable")
            others = order[order != best].reshape(len(order), order.shape[1] - 1)
            best = np.concatenate((best, others), axis=1)[:, : options.top_k]
        return [
            {"kind": head.kind, "labels": [head.labels[i] for i in labels], "scores": [float(row[i]) for i in labels]}
            for labels, row in zip(best.tolist(), scores, strict=True)
        ]
    assert head.thresholds is not None  # the schema gives every multi_label head its thresholds
    thresholds = head.thresholds if options.threshold is None else (options.threshold,) * len(head.labels)
    chosen: list[list[tuple[float, int]]] = [[] for _ in scores]
    rows, labels = over_threshold(scores, thresholds).nonzero()  # only these are sorted: most labels are not answered
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        chosen[row].append((-float(scores[row, label]), label))
    best_first = [sorted(pairs)[: options.top_k] for pairs in chosen]
    return [
        {
            "kind": head.kind,
            "labels": [head.labels[label] for _, label in pairs],
            "scores": [-score for score, _ in pairs],
            "thresholds": [thresholds[label] for _, label in pairs],
        }
        for pairs in best_first
    ]
