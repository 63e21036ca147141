"""Where the server's time went during a run: the difference of its Prometheus metrics before and after."""

from __future__ import annotations

import re
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from itertools import pairwise

from loadtest import CannotRunError

STAGES = ("tokenize", "compute", "decode")
PATIENCE_S = 10.0
LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
EXAMPLE = "expected something like http://127.0.0.1:8002/metrics"


@dataclass(frozen=True, slots=True)
class Stage:
    """Milliseconds of a request in the queue, of a micro-batch (compute), or of a call of ``model.py``."""

    mean_ms: float | None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


def scrape(url: str) -> Samples:
    """Reads a server's metrics.

    Raises:
        CannotRunError: nothing answers there, or the answer is not a Triton server's metrics.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PATIENCE_S) as response:
            samples = parse(response.read().decode("utf-8"))
    except (OSError, HTTPException, ValueError) as error:
        raise CannotRunError(f"no metrics at {url} ({error}); {EXAMPLE}") from error
    if not any(name == "nv_inference_request_success" for name, _ in samples):
        raise CannotRunError(f"no metrics of a Triton server at {url}; {EXAMPLE}")
    return samples


def parse(text: str) -> Samples:
    """The samples of a page in Prometheus' text format."""
    samples: Samples = {}
    for line in text.splitlines():
        if found := LINE.match(line):
            samples[found[1], frozenset(LABEL.findall(found[2] or ""))] = float(found[3])
    return samples


def subtract(before: Samples, after: Samples) -> Samples:
    """What each counter gained. If one of a histogram is lower than before, all restarted at 0, with the server."""
    if any(key[0].endswith(("_bucket", "_count")) and value < before.get(key, 0.0) for key, value in after.items()):
        return after
    return {key: value - before.get(key, 0.0) for key, value in after.items()}


def stages(added: Samples, model: str) -> dict[str, Stage]:
    """Time in the model's queue per request, and in each stage; includes other callers' and the canary's requests.

    A server without these metrics has stages without figures.
    """
    found = {"queue": _stage(added, "polyhead_queue_seconds", {"model": model})}
    for stage in STAGES:
        found[stage] = _stage(added, "polyhead_stage_seconds", {"model": model, "stage": stage})
    return found


def texts_per_micro_batch(added: Samples, model: str) -> float | None:
    """How many texts the server computed at once, on average; None if it does not say."""
    batches = _sum(added, "polyhead_micro_batch_texts_count", model=model)
    return _ratio(_sum(added, "polyhead_micro_batch_texts_sum", model=model), batches)


def _stage(added: Samples, name: str, labels: Mapping[str, str]) -> Stage:
    mean = _ratio(1000 * _sum(added, f"{name}_sum", **labels), _sum(added, f"{name}_count", **labels))
    buckets = _buckets(added, f"{name}_bucket", labels)
    return Stage(mean, *(_quantile(buckets, share) for share in (0.5, 0.95, 0.99)))


def _matching(samples: Samples, name: str, labels: Mapping[str, str]) -> list[tuple[dict[str, str], float]]:
    wanted = set(labels.items())
    return [(dict(found), value) for (one, found), value in samples.items() if one == name and wanted <= found]


def _sum(samples: Samples, name: str, **labels: str) -> float:
    return sum(value for _, value in _matching(samples, name, labels))


def _ratio(total: float, count: float) -> float | None:
    return round(total / count, 3) if count else None


def _buckets(samples: Samples, name: str, labels: Mapping[str, str]) -> list[tuple[float, float]]:
    """Cumulative counts by upper bound in seconds, added up over versions and instances."""
    counts: defaultdict[float, float] = defaultdict(float)
    for found, value in _matching(samples, name, labels):
        counts[float(found["le"])] += value
    return sorted(counts.items())


def _quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """As Prometheus' histogram_quantile: interpolated within a bucket; the lower bound of the last, open bucket."""
    if not buckets or not buckets[-1][1]:
        return None
    wanted = share * buckets[-1][1]
    for (low, below), (high, count) in pairwise([(0.0, 0.0), *buckets]):
        if count >= wanted:
            inside = low if high == float("inf") else low + (high - low) * (wanted - below) / (count - below)
            return round(1000 * inside, 3)
    return None
