"""ONNX Runtime: the model exported with dynamic axes, in fp32 and with its linear weights quantized to int8."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers.peer import Logits, PaddedPeer, PeerMissingError
from benchmarks.workload import PlainClassifier
from polyhead.checkpoint import Checkpoint

BATCH_SIZES = (8, 1, 4)
EXAMPLE = (torch.tensor([[1, 2, 3, 4, 5]] * 3), torch.tensor([3, 5, 4]))  # axes of distinct sizes, so none are mixed up


def onnx_peer(name: str, checkpoint: Checkpoint, precision: str) -> PaddedPeer:
    """Batches of texts of similar length through an inference session with all graph optimizations.

    Raises:
        PeerMissingError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise PeerMissingError(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="polyhead-onnx-") as folder:
        path = Path(folder) / "fp32.onnx"
        export_onnx(checkpoint, path)
        if precision == "int8":
            path = _quantized(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Its threads would spin on while the next peer is measured.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def infer(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Logits:
        logits: Logits = session.run(None, {"input_ids": ids, "lengths": lengths})[0]
        return logits

    return PaddedPeer(name, precision, infer, BATCH_SIZES)


def export_onnx(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the model with inputs ``input_ids`` and ``lengths``, both of any size."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    length = torch.export.Dim("length", min=2, max=checkpoint.body.n_positions)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    torch.onnx.export(
        PlainClassifier(checkpoint, fused_gelu=True), EXAMPLE, str(path), input_names=["input_ids", "lengths"],
        output_names=["logits"], dynamic_shapes=({0: batch, 1: length}, {0: batch}), opset_version=20, dynamo=True,
        verbose=False,
    )  # fmt: skip


def _quantized(path: Path) -> Path:
    """Dynamic quantization, a scale a channel. AVX2 without VNNI overflows in 8-bit products, so it gets 7 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = path.with_name("int8.onnx")
    quantize_dynamic(
        path, quantized, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8,
        reduce_range=not torch.cpu._is_vnni_supported(), use_external_data_format=True,
    )  # fmt: skip
    return quantized
