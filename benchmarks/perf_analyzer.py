"""Triton's own load generator, perf_analyzer, on the texts that the other loads send."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import Load, summarize
from polyhead_serving.triton import ADMIN_HEADER


def analyze(
    binary: Path, http: str, admin_key: str, texts: Sequence[str], texts_a_request: int, clients: int, passes: int
) -> Load:
    """One point: all texts in their order, so many times over. All four outputs are asked for, as it always does.

    Its own throughput counts the time that it needs to notice the end, so ours is taken from its record of requests:
    from the first one sent to the last one answered.
    """
    with tempfile.TemporaryDirectory(prefix="polyhead-perf-analyzer-") as scratch:
        data, record = Path(scratch) / "texts.json", Path(scratch) / "record.json"
        steps = [{"TEXT": {"content": [text], "shape": [1]}} for text in texts]
        data.write_text(json.dumps({"data": steps}), encoding="utf-8")
        requests = len(texts) * passes // texts_a_request
        command = [
            binary, "-m", "gpt2_classifier", "-u", http, "-H", f"{ADMIN_HEADER}:{admin_key}", "--input-data", data,
            "-b", str(texts_a_request), "--concurrency-range", str(clients), "--request-count", str(requests),
            "--profile-export-file", record,
        ]  # fmt: skip
        environment = {"LD_LIBRARY_PATH": str(binary.parent / "lib")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not record.is_file():
            raise RuntimeError(f"perf_analyzer failed ({done.returncode}): {done.stderr[-2000:]}")
        # It repeats the requests' bytes as they were sent, which is not always UTF-8.
        sent = json.loads(record.read_text(encoding="latin-1"), strict=False)["experiments"][0]["requests"]
    latencies = [(request["response_timestamps"][-1] - request["timestamp"]) / 1e9 for request in sent]
    first = min(request["timestamp"] for request in sent)
    last = max(request["response_timestamps"][-1] for request in sent)
    return summarize(latencies, len(sent) * texts_a_request, (last - first) / 1e9)
