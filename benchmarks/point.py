"""One point of the scaling curves, in a process of its own: ``python -m benchmarks.point`` prints one JSON object.

Memory that a call needs is the growth of the resident set's peak from just before it; a process that computed something
else before would hide it behind memory already taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.peers.product import ProductPeer
from polyhead.checkpoint import read_checkpoint

MIB = 2**20


def main(options: Sequence[str] | None = None) -> None:
    """Measures the engine on one batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--batch", type=Path, required=True, help="JSON: a list of token sequences")
    parser.add_argument("--device", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    arguments = parser.parse_args(options)
    token_ids = json.loads(arguments.batch.read_text(encoding="utf-8"))
    engine = ProductPeer("polyhead", read_checkpoint(arguments.checkpoint), arguments.device)
    engine.logits([[1, 2, 3, 4]])  # what is made once, at the first call, is not the batch's
    _reset_peak(arguments.device)
    loaded = _now_mib(arguments.device)
    seconds = []
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        engine.logits(token_ids)
        seconds.append(time.perf_counter() - started)
    second = statistics.median(seconds)
    print(
        json.dumps(
            {
                "tokens": sum(map(len, token_ids)),
                "texts": len(token_ids),
                "texts_s": round(len(token_ids) / second, 2),
                "tok_s": round(sum(map(len, token_ids)) / second, 1),
                "loaded_mib": round(loaded, 1),
                "growth_mib": round(_peak_mib(arguments.device) - loaded, 1),
                "precision": engine.precision,
            }
        )
    )


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # "5" sets the peak of the resident set to what it is now, proc(5).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _now_mib(device: str) -> float:
    return torch.cuda.memory_allocated() / MIB if device == "cuda" else _status_mib("VmRSS")


def _peak_mib(device: str) -> float:
    return torch.cuda.max_memory_allocated() / MIB if device == "cuda" else _status_mib("VmHWM")


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024  # given in kB


if __name__ == "__main__":
    main()
