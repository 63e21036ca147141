"""The canary: a real inference that shows whether the models answer. Triton's own health does not (docs/serving.md).

A slow or overloaded model may answer late or refuse. A hung model may refuse too, because its queue is full. So a
canary without an answer fails only if the model's metrics also show no progress for the whole timeout.
"""

from __future__ import annotations

import json
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, NamedTuple

from polyhead.schema import NO_SCORE

CANARY_TEXT = "a canary"
PROBE_ID = "polyhead-probe"  # the product's own checks have this request id; counts and the answer log leave them out
METRICS_TIMEOUT_S = 1.0
POLL_S = 0.5  # between two looks at the metrics; the model sends them every 0.25 s


class _NoAnswerError(Exception):
    """The server refused the request or did not answer in time. It may be overloaded or hung."""


class _Progress(NamedTuple):
    """What a model has done so far, by its metrics.

    Attributes:
        waiting: how many texts wait in its queue now.
        tokenized: steps of tokenizing.
        computed: micro-batches, and steps of computing them.
        answered: requests that Triton counts as answered, for a model without these metrics.
    """

    waiting: float
    tokenized: float
    computed: float
    answered: float

    def moved_since(self, before: _Progress) -> bool:
        """Whether the model has worked. If texts wait, tokenizing more is no progress, because nothing may take them.

        Requests for the schema are answered without the scheduler, so answers are no progress if it reports its own.
        """
        if self.computed > before.computed:
            return True
        if self.waiting and before.waiting:
            return False
        return self.tokenized > before.tokenized or (not self.computed and self.answered > before.answered)


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
        self._progress: dict[str, _Progress | None] = {}

    def check(self, timeout_s: float) -> str | None:
        """Returns None if every model answers or works, else what is wrong with the first that does not.

        Takes at most `timeout_s` and one look at the metrics for each model.
        """
        for model in self._models:
            deadline = time.monotonic() + timeout_s
            try:
                wrong = self._infer(model, timeout_s)
                self._progress[model] = self._read_progress(model)
            except _NoAnswerError as error:
                wrong = None if self._makes_progress(model, deadline) else str(error)
            if wrong is not None:
                return f"{model}: {wrong}"
        return None

    def _infer(self, model: str, timeout_s: float) -> str | None:
        text = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [CANARY_TEXT]}
        # Nobody reads the answer later than this. A hung-up HTTP request would still be computed.
        within = {"timeout": round(timeout_s * 1e6)}
        asked = {"id": PROBE_ID, "inputs": [text], "outputs": [{"name": "SCORES"}], "parameters": within}
        body = json.dumps(asked).encode()
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
        finite = all(isinstance(score, (int, float)) and math.isfinite(score) and score > NO_SCORE for score in scores)
        return None if finite else f"scores that are not finite: {scores}"

    def _makes_progress(self, model: str, deadline: float) -> bool:
        # A refusal comes at once. One micro-batch may take seconds, so this looks until the whole timeout is over.
        # A restart would only add to the load of an overloaded server.
        before = self._progress.get(model)
        while True:
            now = self._progress[model] = self._read_progress(model)
            if before is not None and now is not None and now.moved_since(before):
                return True
            before = before or now
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(POLL_S, left_s))

    def _read_progress(self, model: str) -> _Progress | None:
        try:
            with self._opener.open(f"http://{self._metrics}/metrics", timeout=METRICS_TIMEOUT_S) as response:
                text = response.read().decode("utf-8")
        except (OSError, HTTPException):
            return None
        rows = re.findall(rf'^(\w+){{([^}}]*\bmodel="{re.escape(model)}"[^}}]*)}} (\S+)$', text, re.MULTILINE)

        def total(name: str, label: str = "") -> float:
            return sum(float(value) for row, labels, value in rows if row == name and label in labels)

        return _Progress(
            waiting=total("polyhead_waiting_texts"),
            tokenized=total("polyhead_progress_total", 'stage="tokenize"'),
            computed=total("polyhead_progress_total", 'stage="compute"') + total("polyhead_micro_batches_total"),
            answered=total("nv_inference_request_success"),
        )
