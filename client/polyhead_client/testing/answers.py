"""What the fake server answers about a text, in the form of the wire: PREDICTION, SCORES and Triton's BYTES."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from polyhead_client.schema import HeadKind, HeadSchema, ModelSchema

BLANK = "the text is empty or blank"

# A mapping by head: a label, labels or scores by label, or a number. Or the wire's own object (with ``heads`` or
# ``error``), or bytes.
Answer = Mapping[str, Any] | bytes


def prediction_json(text: str, answer: Answer, schema: ModelSchema, parameters: dict[str, Any]) -> bytes:
    """PREDICTION of one text."""
    said: Answer = answer if text.strip() else {"error": BLANK}
    if isinstance(said, bytes):
        return said
    if "error" not in said and "heads" not in said:
        heads = {head.name: _decode(head, said.get(head.name), parameters) for head in schema.heads}
        truncated = len(text.split()) > schema.max_length
        said = {"heads": heads, "token_count": count_tokens(text, schema.max_length), "truncated": truncated}
    return json.dumps(said).encode()


def score_row(text: str, answer: Answer, schema: ModelSchema) -> list[float]:
    """SCORES of one text; NaN if the text has no answer."""
    if not text.strip() or isinstance(answer, bytes) or "error" in answer:
        return [math.nan] * schema.width
    return [score for head in schema.heads for score in _head_scores(head, _without_wire_form(answer, head))]


def count_tokens(text: str, most: int) -> int:
    """TOKEN_COUNT of one text; the fake counts words."""
    return min(len(text.split()), most)


def _decode(head: HeadSchema, said: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """A head's part of PREDICTION, decoded from scores as the server decodes them."""
    scores = _head_scores(head, said)
    if head.kind == HeadKind.REGRESSION:
        return {"kind": head.kind, "value": scores[0]}
    thresholds = head.thresholds or (0.0,) * len(head.labels)
    ranked = sorted(zip(head.labels, scores, thresholds, strict=True), key=lambda one: one[1], reverse=True)
    if head.kind == HeadKind.SINGLE_LABEL:
        top = ranked[: parameters.get("top_k", 1)]
        return {"kind": head.kind, "labels": [one[0] for one in top], "scores": [one[1] for one in top]}
    override = parameters.get("threshold")
    ranked = [(label, score, own if override is None else override) for label, score, own in ranked]
    chosen = [one for one in ranked if one[1] >= one[2]][: parameters.get("top_k")]
    labels, passed_scores, passed = ([one[place] for one in chosen] for place in range(3))
    return {"kind": head.kind, "labels": labels, "scores": passed_scores, "thresholds": passed}


def _head_scores(head: HeadSchema, said: Any) -> list[float]:
    """A head's scores. A label without a score has 1; without an answer: the first label, no label, or 0."""
    if head.kind == HeadKind.REGRESSION:
        return [float(said or 0.0)]
    if said is None:
        said = head.labels[0] if head.kind == HeadKind.SINGLE_LABEL else ()
    by_label = dict.fromkeys([said] if isinstance(said, str) else said, 1.0)
    if isinstance(said, Mapping):
        by_label = dict(said)
    if unknown := [label for label in by_label if label not in head.labels]:
        labels = list(head.labels)
        raise AssertionError(f"the fake's answer: head {head.name!r} has labels {labels}, not {unknown[0]!r}")
    return [float(by_label.get(label, 0.0)) for label in head.labels]


def _without_wire_form(answer: Mapping[str, Any], head: HeadSchema) -> Any:
    if "heads" not in answer:
        return answer.get(head.name)
    wire = answer["heads"][head.name]
    if head.kind == HeadKind.REGRESSION:
        return wire["value"]
    return dict(zip(wire["labels"], wire["scores"], strict=True))


def pack(rows: Sequence[bytes]) -> bytes:
    """Triton's BYTES: the length of each element, then the element."""
    return b"".join(struct.pack("<I", len(row)) + row for row in rows)


def unpack(data: bytes) -> list[str]:
    """The inverse of `pack`."""
    rows, start = [], 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        rows.append(data[start + 4 : start + 4 + length].decode())
        start += 4 + length
    return rows
