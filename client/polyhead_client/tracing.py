"""OpenTelemetry, if it is installed: a span per call, a child span per request, and ``traceparent`` on the wire.

Without ``opentelemetry-api`` nothing is traced.
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


@contextlib.contextmanager
def span(name: str, attributes: Mapping[str, str | int], client: bool = False) -> Iterator[dict[str, str]]:
    """A span ``polyhead.NAME``; yields the headers that tell a server about it.

    Args:
        name: a call of the user, such as ``classify``, or ``request`` and what it asks.
        attributes: of the span.
        client: whether the span is a request to a server.
    """
    headers: dict[str, str] = {}
    if _trace is None:
        yield headers
        return
    kind = _trace.SpanKind.CLIENT if client else _trace.SpanKind.INTERNAL
    tracer = _trace.get_tracer("polyhead_client")
    with tracer.start_as_current_span(f"polyhead.{name}", kind=kind, attributes=attributes) as current:
        _propagate.inject(headers)
        try:
            yield headers
        except Exception as error:
            current.set_attribute("error.type", type(error).__name__)
            if getattr(error, "status", None):
                current.set_attribute("polyhead.status", str(error.status))  # type: ignore[attr-defined]
            raise
