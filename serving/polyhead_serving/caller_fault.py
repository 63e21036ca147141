"""Whose fault a 500 is: Triton answers with 500 to JSON that it cannot read, as it does to failures of its own.

Behind the proxy (deploy/nginx) a request that got 500 is shown to the supervisor, which tells 400 from 500.
"""

from __future__ import annotations

import json
import math
from typing import Any


def find_fault(body: bytes, header_length: str | None = None) -> str | None:
    """What is wrong with the form of an inference request, or None: then the fault is the server's.

    Args:
        body: what was sent; of a request with binary tensors, at least its JSON.
        header_length: how long that JSON is (Inference-Header-Content-Length).
    """
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()):
            return "Inference-Header-Content-Length must be a number"
        body = body[: int(header_length)]
    try:
        request = json.loads(body.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
        json.dumps(request, ensure_ascii=False).encode("utf-8")  # finds lone surrogates
    except RecursionError:
        return "the request's JSON is nested too deeply"
    except ValueError as error:  # UnicodeError is one
        return f"the request is not JSON: {error}"
    if not isinstance(request, dict):
        return "the request's JSON must be an object"
    return (
        _wrong_kind(request, "id", str)
        or _wrong_kind(request, "parameters", dict)
        or _wrong_list(request, "inputs", {"name": str, "datatype": str, "shape": list})
        or _wrong_list(request, "outputs", {"name": str})
        or _wrong_tensors(request["inputs"])
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return number


_KINDS: dict[type, str] = {str: "a string", dict: "an object", list: "a list"}


def _wrong_kind(fields: dict[str, Any], name: str, kind: type, place: str = "") -> str | None:
    if name in fields and not isinstance(fields[name], kind):
        return f"{place}{name} must be {_KINDS[kind]}"
    return None


def _wrong_list(request: dict[str, Any], name: str, needed: dict[str, type]) -> str | None:
    if name not in request:
        return "inputs are missing" if name == "inputs" else None
    if wrong := _wrong_kind(request, name, list):
        return wrong
    for number, entry in enumerate(request[name]):
        place = f"{name}[{number}]"
        if not isinstance(entry, dict):
            return f"{place} must be an object"
        for field, kind in needed.items():
            if field not in entry:
                return f"{place}.{field} is missing"
            if wrong := _wrong_kind(entry, field, kind, f"{place}."):
                return wrong
        if wrong := _wrong_kind(entry, "parameters", dict, f"{place}."):
            return wrong
    return None


def _wrong_tensors(inputs: list[dict[str, Any]]) -> str | None:
    for number, tensor in enumerate(inputs):
        if not all(type(size) is int and 0 <= size < 2**31 for size in tensor["shape"]):
            return f"inputs[{number}].shape must be whole numbers from 0 to 2147483647"
        if wrong := _wrong_kind(tensor, "data", list, f"inputs[{number}]."):
            return wrong
        if not all(isinstance(text, (str, list)) for text in tensor.get("data", [])):
            return f"inputs[{number}].data must be strings"
    return None
