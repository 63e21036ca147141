"""Computes the Triton kernels of residual and norm with Triton's interpreter, and prints what it gave as JSON.

A program of its own, because Triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from polyhead.engine.cuda.norm import check_norms, triton_norms
from tests.classifier.test_engine_cuda import CUDAForward, Pair, flash_stand_in, random_texts

CPU = torch.device("cpu")
BY_HAND = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], [1000.0, 1001.0, 1002.0, 1003.0]]
PLACES = [2, 0, 1, 2, 0]
CHANGE = [[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]]


def main(folder: str) -> None:
    fused = triton_norms()
    with torch.inference_mode():
        added, normed = fused.add(torch.tensor(BY_HAND), torch.tensor(CHANGE), 0.75)
        places = torch.tensor(PLACES, dtype=torch.int32)
        embedded = fused.embed(places, places, torch.tensor(BY_HAND), torch.tensor(CHANGE), 0.75, torch.float32)
        for width in (8, 96, 768, 1000):
            for dtype in (torch.float32, torch.bfloat16):
                check_norms(fused, width, dtype, CPU)
        pair = Pair(Path(folder), "hidden_state_concat", None, {})
        texts = random_texts([48, 20, 7, 1], pair.checkpoint.body.vocab_size)
        forward = {
            dtype: CUDAForward(pair.checkpoint, "cpu", dtype, attention=flash_stand_in, norms=fused)
            for dtype in ("fp32", "bf16")
        }
        logits = {dtype: pair.logits(one, texts).tolist() for dtype, one in forward.items()}
    expected = pair.expected(texts).tolist()
    by_hand = {"added": added, "normed": normed, "embedded": embedded[0], "embedded normed": embedded[1]}
    print(json.dumps({name: found.tolist() for name, found in by_hand.items()} | {"expected": expected} | logits))


if __name__ == "__main__":
    main(sys.argv[1])
