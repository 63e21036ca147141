"""The engine without a server, in a process that is idle between jobs, so that both can be measured in turns.

The process runs in the server's environment (``python -m benchmarks.engine_alone CHECKPOINT DEVICE``) because it needs
the NumPy, threads and OpenMP of the model process. It reads one job per line as JSON, and prints its times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.load import Load, summarize
from loadtest.local_server import ROOT, VENV

EngineAlone = Callable[[Sequence[list[str]]], Load]


@contextmanager
def engine_alone(checkpoint: Path, device: str) -> Iterator[EngineAlone]:
    """Runs the process; yields a function that measures requests."""
    command: list[str | Path] = [VENV / "bin" / "python", "-m", "benchmarks.engine_alone", checkpoint, device]
    # PASSIVE, because model.py sets it too.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    jobs, answers = process.stdin, process.stdout
    assert jobs is not None
    assert answers is not None

    def measure(requests: Sequence[list[str]]) -> Load:
        print(json.dumps({"requests": requests}), file=jobs, flush=True)
        answer = json.loads(answers.readline())
        return summarize(answer["latencies_s"], sum(map(len, requests)), answer["seconds"])

    with process:  # at its end the jobs end, and with them the process
        yield measure


def main() -> None:
    """Answers jobs ``{"requests": [[text, …], …]}`` with ``{"latencies_s": […], "seconds": …}`` until stdin ends."""
    import torch

    from polyhead.predictor import Predictor

    if threads := os.environ.get("POLYHEAD_THREADS"):
        torch.set_num_threads(int(threads))
    predictor = Predictor.load(sys.argv[1], device=sys.argv[2])
    predictor.predict([b"A first text that proves the model.", b"short"])
    for line in sys.stdin:
        batches = [[text.encode() for text in texts] for texts in json.loads(line)["requests"]]
        latencies = []
        started = time.perf_counter()
        for batch in batches:
            began = time.perf_counter()
            predictor.predict(batch)
            latencies.append(time.perf_counter() - began)
        print(json.dumps({"latencies_s": latencies, "seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()
