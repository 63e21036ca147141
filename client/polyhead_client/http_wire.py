"""A `Call` as an HTTP request and back, in Triton's binary form; nothing here talks to a server.

tritonclient's public functions encode and decode; what carries the bytes is the transport's business.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import tritonclient.http
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from polyhead_client.request import Call, build_request

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What goes out; `path` begins with a slash."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What came back; header names in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def infer_call(model: str, rows: Sequence[bytes], output: str) -> Call:
    """What asks a model for one output, for those who carry HTTP themselves."""
    return Call("infer", model, "", build_request(tritonclient.http, rows, [output], {}), len(rows))


def encode(call: Call, headers: Mapping[str, str], remaining_s: float) -> HttpRequest:
    """The request; the server is told how long somebody waits, so that it drops what nobody reads any more."""
    headers = {**headers, "Accept-Encoding": "identity"}  # else aiohttp asks for gzip, and Triton spends time on it
    path = f"/v2/models/{quote(call.model, safe='')}"
    if call.version:
        path += f"/versions/{quote(call.version, safe='')}"
    if call.infer is None:
        endpoint = {"config": "config", "ready": "ready", "statistics": "stats"}[call.kind]
        return HttpRequest("GET", f"{path}/{endpoint}", headers)
    body, header_length = InferenceServerClient.generate_request_body(
        call.infer.inputs,
        outputs=call.infer.outputs,
        timeout=max(int(remaining_s * 1e6), 1),
        parameters=call.infer.parameters,
    )
    described = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(header_length)}
    return HttpRequest("POST", f"{path}/infer", {**headers, **described}, body)


def decode(call: Call, reply: HttpReply) -> Any:
    """An InferResult, a JSON object, or for ``ready`` whether it is.

    Raises:
        InferenceServerException: any other status than 200.
        ValueError, LookupError, TypeError: it is no Triton response.
    """
    if call.kind == "ready" and reply.status in (200, 400):
        return reply.status == 200
    if reply.status != 200:
        error = InferenceServerException(_message(reply), status=str(reply.status))
        error.retry_after_s = _retry_after_s(reply.headers.get("retry-after"))
        raise error
    if call.infer is None:
        return json.loads(reply.body)
    length = reply.headers.get(HEADER_LENGTH.lower())
    return InferenceServerClient.parse_response_body(reply.body, header_length=None if length is None else int(length))


def _message(reply: HttpReply) -> str:
    text = reply.body.decode("utf-8", errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return text or f"HTTP status {reply.status} without a message"


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
