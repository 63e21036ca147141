"""OpenVINO: the torch module converted directly, so that its attention stays one operation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers.onnx_peers import EXAMPLE
from benchmarks.peers.peer import Logits, PaddedPeer, PeerMissingError
from benchmarks.workload import PlainClassifier
from polyhead.checkpoint import Checkpoint

BATCH_SIZES = (8, 1, 4, 16)
HINTS = {"fp32": "f32", "bf16": "bf16"}


def openvino_peer(name: str, checkpoint: Checkpoint, precision: str) -> PaddedPeer:
    """Batches of texts of similar length through one stream on all cores.

    Raises:
        PeerMissingError: openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise PeerMissingError(str(error)) from error
    model = openvino.convert_model(PlainClassifier(checkpoint, fused_gelu=True), example_input=EXAMPLE)
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )

    def infer(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Logits:
        logits: Logits = compiled([ids, lengths])[0]
        return logits.copy()  # the runtime's own memory, written again by the next call

    return PaddedPeer(name, precision, infer, BATCH_SIZES)
