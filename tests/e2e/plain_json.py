"""Inference requests in Triton's own JSON, sent as curl would."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any


def infer_json(http: str, body: dict[str, Any] | bytes) -> tuple[int, dict[str, Any]]:
    """Sends a body; returns status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{http}/v2/models/gpt2_classifier/infer", data)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def json_body(texts: list[str], outputs: list[str], **parameters: Any) -> dict[str, Any]:
    """An inference request."""
    return {
        "parameters": parameters,
        "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}],
        "outputs": [{"name": name} for name in outputs],
    }
