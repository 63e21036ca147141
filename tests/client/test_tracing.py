"""OpenTelemetry: spans and their context on the wire, with the real SDK."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from polyhead_client import RetryPolicy, ServerFailedError
from polyhead_client.testing import Failure, FakeServer
from tests.client.surface import Ask

EXPORTER = InMemorySpanExporter()


@pytest.fixture(scope="module")
def provider() -> TracerProvider:
    """The process's tracer provider, which can be set only once."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(provider)
    return provider


@pytest.fixture
def spans(provider: TracerProvider) -> InMemorySpanExporter:
    """The spans of this test."""
    EXPORTER.clear()
    return EXPORTER


def test_a_span_a_call_and_one_a_request(ask: Ask, server: FakeServer, spans: InMemorySpanExporter) -> None:
    """Requests are children of their call, the call of the caller's span, and the wire has the request's span."""
    server.failures = [Failure(503, "busy")]
    tracer = trace.get_tracer("test")
    with (
        ask(server, "host:8000", batch_size=2, retry=RetryPolicy(base_s=0)) as client,
        tracer.start_as_current_span("page"),
    ):
        client.classify(["a", "b", "c"])
    *requests, call, page = spans.get_finished_spans()
    assert [span.name for span in (*requests, call, page)] == [
        *["polyhead.request infer"] * 3,
        "polyhead.classify",
        "page",
    ]
    assert call.parent.span_id == page.context.span_id
    assert {span.parent.span_id for span in requests} == {call.context.span_id}
    assert [span.attributes["polyhead.attempt"] for span in requests] == [1, 2, 1]
    assert [span.attributes["polyhead.texts"] for span in requests] == [2, 2, 1]
    assert requests[0].attributes["polyhead.status"] == "503"
    assert requests[0].attributes["server.address"] == "host:8000"
    assert requests[0].kind is trace.SpanKind.CLIENT
    carried = [asked.headers["traceparent"].split("-")[2] for asked in server.requests]
    assert carried == [f"{span.context.span_id:016x}" for span in requests[1:]]


def test_streams_keep_the_context(ask: Ask, server: FakeServer, spans: InMemorySpanExporter) -> None:
    """Requests of threads and tasks belong to the trace in which the stream is read."""
    with ask(server) as client, trace.get_tracer("test").start_as_current_span("job") as job:
        list(client.stream(["a"] * 6, batch_size=2))
    requests = [span for span in spans.get_finished_spans() if span.name == "polyhead.request infer"]
    assert len(requests) == 3
    assert {span.context.trace_id for span in requests} == {job.get_span_context().trace_id}


def test_failures_are_on_the_spans(ask: Ask, server: FakeServer, spans: InMemorySpanExporter) -> None:
    """A failed request and its call are marked with the type of error."""
    server.failure = Failure(500, "broke")
    with ask(server) as client, pytest.raises(ServerFailedError):
        client.classify("text")
    request, call = spans.get_finished_spans()
    assert request.attributes["error.type"] == "ServerFailedError"
    assert not request.status.is_ok
    assert not call.status.is_ok


def test_not_needed() -> None:
    """Without opentelemetry the client works."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from polyhead_client.testing import FakeServer\n"
        "fake = FakeServer()\n"
        "with fake.client() as client: client.classify('text')\n"
        "assert 'traceparent' not in fake.requests[0].headers\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
