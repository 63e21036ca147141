"""The engine without a server, in the server's environment: reads one job per line as JSON, and prints its times.

It runs in that environment (``python -m benchmarks.engine_alone CHECKPOINT DEVICE``) because it needs the NumPy,
threads and OpenMP of the model process. It is idle between jobs, so that engine and server can be measured in turns.
"""

from __future__ import annotations

import json
import os
import sys
import time

# As in model.py: it must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from polyhead.predictor import Predictor


def main() -> None:
    """Answers jobs ``{"requests": [[text, …], …]}`` with ``{"latencies_s": […], "seconds": …}`` until stdin ends."""
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
