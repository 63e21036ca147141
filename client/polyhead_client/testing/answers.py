"""What a fake says of a text, in the wire's form: decoded labels as the server decodes them, and score rows."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from polyhead_client.schema import HeadSchema


def decode(head: HeadSchema, said: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """A head's part of PREDICTION, as the server decodes scores."""
    if head.kind == "regression":
        return {"kind": head.kind, "value": head_scores(head, said)[0]}
    thresholds = head.thresholds or (0.0,) * len(head.labels)
    ranked = sorted(
        zip(head.labels, head_scores(head, said), thresholds, strict=True), key=lambda one: one[1], reverse=True
    )
    if head.kind == "single_label":
        top = ranked[: parameters.get("top_k", 1)]
        return {"kind": head.kind, "labels": [one[0] for one in top], "scores": [one[1] for one in top]}
    override = parameters.get("threshold")
    ranked = [(label, score, own if override is None else override) for label, score, own in ranked]
    chosen = [one for one in ranked if one[1] >= one[2]][: parameters.get("top_k")]
    labels, scores, passed = ([one[place] for one in chosen] for place in range(3))
    return {"kind": head.kind, "labels": labels, "scores": scores, "thresholds": passed}


def head_scores(head: HeadSchema, said: Any) -> list[float]:
    """A head's scores: 1 for labels that are only named; where nothing is said the first label, none, or 0."""
    if head.kind == "regression":
        return [float(said or 0.0)]
    if said is None:
        said = head.labels[0] if head.kind == "single_label" else ()
    by_label = dict.fromkeys([said] if isinstance(said, str) else said, 1.0)
    if isinstance(said, Mapping):
        by_label = dict(said)
    if unknown := [label for label in by_label if label not in head.labels]:
        labels = list(head.labels)
        raise AssertionError(f"the fake's answer: head {head.name!r} has labels {labels}, not {unknown[0]!r}")
    return [float(by_label.get(label, 0.0)) for label in head.labels]


def unwrapped(said: Mapping[str, Any], head: HeadSchema) -> Any:
    """What is said of a head, also where it is said in the wire's form."""
    if "heads" not in said:
        return said.get(head.name)
    wire = said["heads"][head.name]
    return wire["value"] if head.kind == "regression" else dict(zip(wire["labels"], wire["scores"], strict=True))


def count(text: str, most: int) -> int:
    """The fake's tokens: words."""
    return min(len(text.split()), most)


def pack(rows: Sequence[bytes]) -> bytes:
    """Triton's BYTES: each element after its length."""
    return b"".join(struct.pack("<I", len(row)) + row for row in rows)


def unpack(data: bytes) -> list[str]:
    """The inverse of `pack`."""
    rows, start = [], 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        rows.append(data[start + 4 : start + 4 + length].decode())
        start += 4 + length
    return rows
