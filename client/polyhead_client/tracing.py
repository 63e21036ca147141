"""OpenTelemetry, if it is installed: a span per call, a child span per request, and ``traceparent`` on the wire.

Without ``opentelemetry-api`` these functions do nothing.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

try:
    _trace: Any = importlib.import_module("opentelemetry.trace")
    _propagate: Any = importlib.import_module("opentelemetry.propagate")
except ImportError:
    _trace = _propagate = None

TRACER = "polyhead_client"


@contextlib.contextmanager
def operation(name: str, model: str) -> Iterator[None]:
    """A span around one call of the user, such as ``polyhead.classify``."""
    if _trace is None:
        yield
        return
    with _trace.get_tracer(TRACER).start_as_current_span(
        f"polyhead.{name}", kind=_trace.SpanKind.INTERNAL, attributes={"polyhead.model": model}
    ):
        yield


@contextlib.contextmanager
def request(kind: str, address: str, model: str, texts: int, attempt: int) -> Iterator[Mapping[str, str]]:
    """A span around one request to one replica; yields the headers that tell the server about it."""
    if _trace is None:
        yield {}
        return
    attributes: dict[str, str | int] = {
        "server.address": address,
        "polyhead.model": model,
        "polyhead.texts": texts,
        "polyhead.attempt": attempt,
    }
    headers: dict[str, str] = {}
    with _trace.get_tracer(TRACER).start_as_current_span(
        f"polyhead.request {kind}", kind=_trace.SpanKind.CLIENT, attributes=attributes
    ) as span:
        _propagate.inject(headers)
        try:
            yield headers
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            if getattr(error, "status", None):
                span.set_attribute("polyhead.status", str(error.status))  # type: ignore[attr-defined]
            raise
