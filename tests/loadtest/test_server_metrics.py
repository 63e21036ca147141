"""The server's metrics, read and subtracted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from loadtest import CannotRunError
from loadtest.server_metrics import Stage, parse, scrape, stages, subtract, texts_per_micro_batch

PAGE = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="m",version="1"}} {requests}
nv_inference_request_success{{model="other",version="1"}} 77777
polyhead_queue_seconds_bucket{{le="0.001",model="m",version="1"}} {fast}
polyhead_queue_seconds_bucket{{le="+Inf",model="m",version="1"}} {requests}
polyhead_queue_seconds_sum{{model="m",version="1"}} {queue_s}
polyhead_queue_seconds_count{{model="m",version="1"}} {requests}
polyhead_stage_seconds_bucket{{le="0.01",model="m",stage="compute",version="1"}} {fast}
polyhead_stage_seconds_bucket{{le="0.1",model="m",stage="compute",version="1"}} {batches}
polyhead_stage_seconds_bucket{{le="+Inf",model="m",stage="compute",version="1"}} {batches}
polyhead_stage_seconds_sum{{model="m",stage="compute",version="1"}} {seconds}
polyhead_stage_seconds_count{{model="m",stage="compute",version="1"}} {batches}
polyhead_micro_batch_texts_sum{{model="m",version="1"}} {texts}
polyhead_micro_batch_texts_count{{model="m",version="1"}} {batches}
polyhead_instances{{device="a \\"b\\", c",model="m",precision="bf16",version="1"}} 1
polyhead_instances{{device="cpu",model="m",precision="int8",version="0"}} 0
"""
BEFORE = PAGE.format(requests=100, queue_s=0.05, fast=10, batches=10, seconds=0.05, texts=20)
AFTER = PAGE.format(requests=300, queue_s=0.45, fast=20, batches=30, seconds=1.05, texts=240)


def test_difference_of_a_run() -> None:
    """Only the difference counts: queue time per request, stage time per batch, quantiles within buckets."""
    added = subtract(parse(BEFORE), parse(AFTER))
    found = stages(added, "m")
    assert found["queue"].mean_ms == 2.0
    assert found["queue"].p50_ms == 1.0  # in the open bucket: its lower bound
    assert found["compute"].mean_ms == 50.0
    # 10 of the 20 batches ended below 10 ms, the others evenly up to 100 ms.
    assert found["compute"].p50_ms == pytest.approx(10.0)
    assert found["compute"].p95_ms == pytest.approx(91.0)
    assert found["tokenize"] == Stage(None, None, None, None)
    assert texts_per_micro_batch(added, "m") == 11.0
    assert stages(added, "nobody's")["queue"] == Stage(None)
    assert texts_per_micro_batch(added, "nobody's") is None


def test_a_restart_begins_at_0() -> None:
    """After a restart the server's counters are lower than before, and count in full."""
    added = subtract(parse(AFTER), parse(BEFORE))
    assert stages(added, "m")["queue"].mean_ms == 0.5


@contextmanager
def page(body: bytes) -> Iterator[str]:
    """Serves it on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def test_reads_over_http() -> None:
    """A page is read with its labels; escaped quotes and commas in values are no separators."""
    with page(AFTER.encode()) as url:
        samples = scrape(url)
    assert samples["nv_inference_request_success", frozenset({("model", "m"), ("version", "1")})] == 300


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"\xff", b"up 1\n", b"up nothing\n"])
def test_another_page_is_refused(body: bytes) -> None:
    """A page that is not a Triton server's is refused with its address."""
    with page(body) as url, pytest.raises(CannotRunError, match="no metrics"):
        scrape(url)


def test_no_server_is_refused() -> None:
    """The error names the address if no server answers there."""
    with pytest.raises(CannotRunError, match=r"no metrics at http://127\.0\.0\.1:1/metrics"):
        scrape("http://127.0.0.1:1/metrics")
