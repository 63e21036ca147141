"""Where the server's time went during a run: its Prometheus metrics before and after, subtracted."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from itertools import pairwise

STAGES = ("tokenize", "compute", "decode")
PATIENCE_S = 10.0
LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class MetricsError(Exception):
    """The metrics cannot be read; one line that names the address."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Milliseconds that a request spent in Triton's queue, or a batch in a stage of ``model.py``."""

    mean_ms: float | None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


def scrape(url: str) -> Samples:
    """Reads Prometheus' text format.

    Raises:
        MetricsError: nobody answers there, or not with metrics.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PATIENCE_S) as response:
            samples = parse(response.read().decode("utf-8"))
    except (OSError, HTTPException, ValueError) as error:
        raise MetricsError(f"no metrics at {url} ({error}); give such as http://localhost:8002/metrics") from error
    if not any(name == "nv_inference_request_success" for name, _ in samples):
        raise MetricsError(f"no metrics of a Triton server at {url}; give such as http://localhost:8002/metrics")
    return samples


def parse(text: str) -> Samples:
    """The samples of a page in Prometheus' text format."""
    samples: Samples = {}
    for line in text.splitlines():
        if found := LINE.match(line):
            samples[found[1], frozenset(LABEL.findall(found[2] or ""))] = float(found[3])
    return samples


def subtract(before: Samples, after: Samples) -> Samples:
    """What was added; a counter that is lower than before began again at 0, since the server did."""
    return {
        key: value - before.get(key, 0.0) if value >= before.get(key, 0.0) else value for key, value in after.items()
    }


def stages(added: Samples, model: str) -> dict[str, Stage]:
    """The queue's time a request and each stage's a batch. Requests of others and the canary's are among them."""
    requests = _sum(added, "nv_inference_request_success", model=model)
    queue_us = _sum(added, "nv_inference_queue_duration_us", model=model)
    found = {"queue": Stage(_ratio(queue_us / 1000, requests))}
    for stage in STAGES:
        labels = {"model": model, "stage": stage}
        count = _sum(added, "polyhead_stage_seconds_count", **labels)
        mean = _ratio(1000 * _sum(added, "polyhead_stage_seconds_sum", **labels), count)
        buckets = _buckets(added, "polyhead_stage_seconds_bucket", labels)
        found[stage] = Stage(mean, *(_quantile(buckets, share) for share in (0.5, 0.95, 0.99)))
    return found


def texts_a_batch(added: Samples, model: str) -> float | None:
    """How many texts the server computed at once, on average."""
    batches = _sum(added, "polyhead_batch_texts_count", model=model)
    return _ratio(_sum(added, "polyhead_batch_texts_sum", model=model), batches)


def precision(samples: Samples, model: str) -> str | None:
    """The lowest precision among the instances that serve now; None where the server does not say."""
    serving = {
        dict(labels).get("precision")
        for (name, labels), value in samples.items()
        if name == "polyhead_instances" and value > 0 and ("model", model) in labels
    }
    return next((one for one in ("int8", "bf16", "fp32") if one in serving), None)


def _matching(samples: Samples, name: str, labels: Mapping[str, str]) -> list[tuple[dict[str, str], float]]:
    wanted = set(labels.items())
    return [(dict(found), value) for (one, found), value in samples.items() if one == name and wanted <= found]


def _sum(samples: Samples, name: str, **labels: str) -> float:
    return sum(value for _, value in _matching(samples, name, labels))


def _ratio(total: float, count: float) -> float | None:
    return round(total / count, 3) if count else None


def _buckets(samples: Samples, name: str, labels: Mapping[str, str]) -> list[tuple[float, float]]:
    """Cumulative counts by upper bound in seconds, of all versions and instances together."""
    counts: dict[float, float] = {}
    for found, value in _matching(samples, name, labels):
        bound = float(found["le"].replace("+Inf", "inf"))
        counts[bound] = counts.get(bound, 0.0) + value
    return sorted(counts.items())


def _quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """As Prometheus' histogram_quantile: even within a bucket; in the last, open one its lower bound."""
    if not buckets or not buckets[-1][1]:
        return None
    wanted = share * buckets[-1][1]
    for (low, below), (high, count) in pairwise([(0.0, 0.0), *buckets]):
        if count >= wanted:
            inside = low if high == float("inf") else low + (high - low) * (wanted - below) / (count - below)
            return round(1000 * inside, 3)
    return None
