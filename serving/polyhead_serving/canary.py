"""The canary: a real inference that shows whether the models answer. Triton's own health does not (docs/serving.md)."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

CANARY_TEXT = "a canary"


class _NoAnswerError(Exception):
    """The server rejected the request or did not answer in time. It may be overloaded or hung."""


class Canary:
    """Asks each model for the scores of a short text, over HTTP.

    Args:
        http: ``host:port`` of the inference endpoint.
        metrics: ``host:port`` of the metrics endpoint.
        models: the names of the models.
    """

    def __init__(self, http: str, metrics: str, models: Sequence[str]) -> None:
        self._http = http
        self._metrics = metrics
        self._models = models
        # The server is on this machine, so HTTP_PROXY must not apply.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._progress: dict[str, float | None] = {}

    def check(self, timeout_s: float) -> str | None:
        """Returns None if every model answers, else what is wrong with the first that does not."""
        for model in self._models:
            try:
                wrong = self._infer(model, timeout_s)
            except _NoAnswerError as error:
                wrong = None if self._makes_progress(model, timeout_s) else str(error)
            self._progress[model] = self._read_progress(model, timeout_s)
            if wrong is not None:
                return f"{model}: {wrong}"
        return None

    def _infer(self, model: str, timeout_s: float) -> str | None:
        text = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [CANARY_TEXT]}
        body = json.dumps({"inputs": [text], "outputs": [{"name": "SCORES"}]}).encode()
        url = f"http://{self._http}/v2/models/{model}/infer"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                scores: list[Any] = json.load(response)["outputs"][0]["data"]
        except urllib.error.HTTPError as error:
            message = error.read(2000).decode("utf-8", "replace")
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
                raise _NoAnswerError(message) from error
            return f"{error.code} {message}"
        except TimeoutError as error:
            raise _NoAnswerError(f"no answer within {timeout_s:g} s") from error
        except (OSError, HTTPException, ValueError, LookupError) as error:
            return repr(error)
        finite = all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores)
        return None if finite else f"scores that are not finite: {scores}"

    def _makes_progress(self, model: str, timeout_s: float) -> bool:
        # A restart would only add to the load of an overloaded server.
        before, now = self._progress.get(model), self._read_progress(model, timeout_s)
        return before is not None and now is not None and now > before

    def _read_progress(self, model: str, timeout_s: float) -> float | None:
        try:
            with self._opener.open(f"http://{self._metrics}/metrics", timeout=timeout_s) as response:
                text = response.read().decode("utf-8")
        except (OSError, HTTPException):
            return None
        # One batch may take longer than the canary waits. The model counts each part of it as soon as it is scored.
        names = "nv_inference_request_success|polyhead_parts_total"
        pattern = rf'^(?:{names}){{[^}}]*model="{re.escape(model)}"[^}}]*}} (\S+)$'
        return sum(float(count) for count in re.findall(pattern, text, re.MULTILINE))
