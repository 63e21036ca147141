"""Whose fault a 500 is: what is malformed, and what is not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from polyhead_serving.caller_fault import find_fault

TENSOR = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["text"]}
GOOD = {"id": "1", "inputs": [TENSOR], "outputs": [{"name": "SCORES", "parameters": {}}], "parameters": {"top_k": 3}}


@pytest.mark.parametrize("request_", [GOOD, {"inputs": [{**TENSOR, "data": [["text"]]}]}, {"inputs": []}])
def test_a_well_formed_request_is_not_to_blame(request_: dict[str, Any]) -> None:
    """Where the form is right, the fault is the server's."""
    assert find_fault(json.dumps(request_).encode()) is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ('{"inputs": []}'.encode("utf-16"), "not JSON"),
        (b'{"inputs": [], "id": "\\ud800"}', "not JSON"),
        (b'{"inputs": [], "parameters": {"a": NaN}}', "NaN"),
        (b'{"inputs": [], "parameters": {"a": 1e999}}', "too large"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[]", "an object"),
        (b"{}", "inputs are missing"),
        (b'{"inputs": 5}', "inputs must be a list"),
        (b'{"inputs": [5]}', r"inputs\[0\] must be an object"),
        (b'{"inputs": [{}]}', r"inputs\[0\].name is missing"),
    ],
)
def test_malformed_bodies_are_named(body: bytes, reason: str) -> None:
    """Each says in one line what is wrong."""
    fault = find_fault(body)
    assert fault is not None
    assert re.search(reason, fault)


@pytest.mark.parametrize(
    ("field", "value"), [("name", 1), ("datatype", None), ("shape", "1"), ("shape", [2**32, 1]), ("shape", [1.5]),
                         ("shape", [True]), ("data", "text"), ("data", [5]), ("parameters", [])]
)  # fmt: skip
def test_malformed_tensors_are_named(field: str, value: Any) -> None:
    """A field of the wrong kind is named with its place."""
    fault = find_fault(json.dumps({**GOOD, "inputs": [{**TENSOR, field: value}]}).encode())
    assert fault is not None
    assert f"inputs[0].{field}" in fault


def test_only_the_json_of_binary_bodies_is_read() -> None:
    """What follows it may be anything; a length that is none is a fault."""
    text = json.dumps(GOOD).encode()
    assert find_fault(text + b"\xff\x00", str(len(text))) is None
    assert find_fault(text + b"\xff\x00", str(len(text) + 1)) is not None
    assert find_fault(text, "-5") == "Inference-Header-Content-Length must be a number"
