"""Plain HTTP: one connection per request, no retries."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.chaos.corpus import Corpus
from tests.e2e.plain_json import json_body

INFER = "/v2/models/gpt2_classifier/infer"


def ask(place: str, texts: Sequence[str], timeout_s: float = 5.0) -> tuple[int, NDArray[np.float32] | str]:
    """Status, and the scores or the error message.

    Raises:
        OSError, http.client.HTTPException: no answer.
    """
    connection = http.client.HTTPConnection(place, timeout=timeout_s)
    try:
        return ask_on(connection, texts)
    finally:
        connection.close()


def ask_on(connection: http.client.HTTPConnection, texts: Sequence[str]) -> tuple[int, NDArray[np.float32] | str]:
    """The same on a connection that may be kept."""
    connection.request("POST", INFER, json.dumps(json_body(list(texts), ["SCORES"])))
    response = connection.getresponse()
    data = response.read()
    if response.status != http.client.OK:
        return response.status, data.decode("utf-8", "replace")[:300]
    (scores,) = json.loads(data)["outputs"]
    return response.status, np.array(scores["data"], dtype=np.float32).reshape(scores["shape"])


def is_right(place: str, corpus: Corpus, timeout_s: float = 2.0) -> bool:
    """Whether a server gives a right answer."""
    try:
        _, scores = ask(place, corpus.texts[:2], timeout_s)
    except (OSError, http.client.HTTPException, ValueError, LookupError):
        return False
    return not isinstance(scores, str) and corpus.is_right([0, 1], scores)
