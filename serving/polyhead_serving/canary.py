"""The canary: whether the models really answer. Triton's health endpoints stay good over a dead model process."""

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


class _RejectedError(Exception):
    """The server did not answer in time, which an overloaded one does as much as a hung one."""


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
        # The environment's proxy is not for a server on this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._progress: dict[str, float | None] = {}

    def sing(self, timeout_s: float) -> str | None:
        """None if every model answers, else what is wrong with the first that does not."""
        for model in self._models:
            try:
                wrong = self._ask(model, timeout_s)
            except _RejectedError as error:
                wrong = None if self._gets_on(model, timeout_s) else str(error)
            self._progress[model] = self._count_progress(model, timeout_s)
            if wrong is not None:
                return f"{model}: {wrong}"
        return None

    def _ask(self, model: str, timeout_s: float) -> str | None:
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
                raise _RejectedError(message) from error
            return f"{error.code} {message}"
        except TimeoutError as error:
            raise _RejectedError(f"no answer within {timeout_s:g} s") from error
        except (OSError, HTTPException, ValueError, LookupError) as error:
            return repr(error)
        finite = all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores)
        return None if finite else f"scores that are not finite: {scores}"

    def _gets_on(self, model: str, timeout_s: float) -> bool:
        # Restarting an overloaded server would only add to its load.
        before, now = self._progress.get(model), self._count_progress(model, timeout_s)
        return before is not None and now is not None and now > before

    def _count_progress(self, model: str, timeout_s: float) -> float | None:
        try:
            with self._opener.open(f"http://{self._metrics}/metrics", timeout=timeout_s) as response:
                text = response.read().decode("utf-8")
        except (OSError, HTTPException):
            return None
        # A batch that takes longer than the canary waits says of each of its parts that it is scored.
        names = "nv_inference_request_success|polyhead_parts_total"
        pattern = rf'^(?:{names}){{[^}}]*model="{re.escape(model)}"[^}}]*}} (\S+)$'
        return sum(float(count) for count in re.findall(pattern, text, re.MULTILINE))
