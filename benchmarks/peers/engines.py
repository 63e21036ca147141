"""The engines that are compared: the product, transformers (eager and compiled), ONNX Runtime and OpenVINO.

An engine that cannot run here is left out, with the reason.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers.peer import Logits, PaddedPeer, Peer, PeerMissingError
from benchmarks.workload import ReferenceClassifier
from polyhead.checkpoint import Checkpoint
from polyhead.engine import PRECISIONS, Engine, Precision, fastest_precision
from polyhead.errors import OptionError

Build = Callable[[str, Checkpoint], Peer]  # arguments: the peer's name and the model

PRODUCT = "polyhead"
PRODUCTS: dict[str, Precision | None] = {PRODUCT: None} | {f"{PRODUCT}_{name}": name for name in PRECISIONS}
# What most people run first; the summary's ratio_hf compares with it.
PLAIN = {"cpu": "transformers_fp32_batch8", "cuda": "transformers_bf16_batch64"}
NO_BF16 = "this CPU has no bf16 instructions"  # it would be many times slower
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16"}
# Example input for exports; its axes differ in size, so that an export cannot mix them up.
EXAMPLE = (torch.tensor([[1, 2, 3, 4, 5]] * 3), torch.tensor([3, 5, 4]))


def builders(device: str) -> dict[str, Build]:
    """All peers of a device by name, the product first."""
    products: dict[str, Build] = {
        name: partial(ProductPeer, device=device, precision=precision) for name, precision in PRODUCTS.items()
    }
    return products | (_cuda() if device == "cuda" else _cpu())


def _cpu() -> dict[str, Build]:
    best = fastest_precision(torch.device("cpu"))
    eager = partial(transformers_peer, device="cpu")
    compiled = partial(transformers_peer, device="cpu", batch_sizes=(8, 1, 4, 16), compiled=True)
    no_bf16 = partial(_missing, reason=NO_BF16)
    slow_fp32 = partial(_missing, reason="this CPU runs bf16, which is faster")
    return {
        "transformers_fp32_batch1": partial(eager, precision="fp32", batch_sizes=(1,), plain=True),
        "transformers_fp32_batch8": partial(eager, precision="fp32", batch_sizes=(8,), plain=True),
        "transformers_bf16_sorted": partial(eager, precision="bf16", batch_sizes=(8,)) if best == "bf16" else no_bf16,
        "compile_bf16": partial(compiled, precision="bf16") if best == "bf16" else no_bf16,
        "compile_fp32": partial(compiled, precision="fp32") if best == "fp32" else slow_fp32,
        "openvino": partial(openvino_peer, precision=best),
        "onnx_fp32": partial(onnx_peer, precision="fp32"),
        "onnx_int8": partial(onnx_peer, precision="int8"),
    }


def _cuda() -> dict[str, Build]:
    bf16 = partial(transformers_peer, device="cuda", precision="bf16")
    tuned = partial(bf16, batch_sizes=(64, 128, 256))
    return {
        PLAIN["cuda"]: partial(bf16, batch_sizes=(64,), plain=True),
        "transformers_bf16_sorted": tuned,
        "compile_bf16": partial(tuned, compiled=True),
        "flash_attention_2": partial(tuned, attention="flash_attention_2")
        if importlib.util.find_spec("flash_attn")
        else partial(_missing, reason="No module named 'flash_attn'"),
        "flex_attention": partial(tuned, attention="flex_attention", compiled=True),
    }


def _missing(name: str, checkpoint: Checkpoint, reason: str) -> Peer:
    raise PeerMissingError(reason)


def line_up(checkpoint: Checkpoint, device: str, names: Sequence[str]) -> tuple[list[Peer], dict[str, str]]:
    """Builds the named peers. Returns them and, for those that cannot run here, the reason."""
    build = builders(device)
    peers: list[Peer] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            peer = build[name](name, checkpoint)
        except PeerMissingError as error:
            left_out[name] = str(error)
            continue
        if name in PRODUCTS and any(one.name == PRODUCT and one.precision == peer.precision for one in peers):
            left_out[name] = f"{PRODUCT} itself runs this precision here"
        else:
            peers.append(peer)
    return peers, left_out


class ProductPeer:
    """The product: the engine, which sorts texts and cuts batches itself.

    Args:
        precision: if None, the fastest one on this machine.

    Raises:
        PeerMissingError: the device has no instructions for this precision.
    """

    batch_size: int | None = None

    def __init__(self, name: str, checkpoint: Checkpoint, device: str, precision: Precision | None = None) -> None:
        self.name = name
        chosen = precision or fastest_precision(torch.device(device))
        if device == "cpu" and chosen == "bf16" != fastest_precision(torch.device("cpu")):
            raise PeerMissingError(NO_BF16)
        try:
            self._engine = Engine(checkpoint, device, chosen)
        except OptionError as error:
            raise PeerMissingError(str(error)) from error
        self.precision: str = chosen

    def logits(self, token_ids: Sequence[Sequence[int]]) -> Logits:
        """Logits in the order given."""
        return self._engine.logits(token_ids)

    def warm_up(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Runs a third of the texts."""
        self._engine.logits(token_ids[::3])


def transformers_peer(
    name: str,
    checkpoint: Checkpoint,
    device: str,
    precision: str,
    batch_sizes: Sequence[int],
    *,
    plain: bool = False,
    attention: str = "sdpa",
    compiled: bool = False,
) -> PaddedPeer:
    """Batches through transformers' GPT2Model.

    Args:
        plain: as most people run it: texts in the order given, pads masked, transformers' own GELU. Otherwise with
            everything that makes the same model faster: texts sorted by length, GELU in one kernel, and no mask, so
            that attention uses its causal kernel.
        attention: transformers' name of an attention implementation.
        compiled: with torch.compile for any batch size and length.
    """
    model = ReferenceClassifier(checkpoint, fused_gelu=not plain, attention=attention, masked=plain)
    body: torch.nn.Module = model.body_model
    body.to(DTYPES[precision])  # the head stays in fp32
    model.to(device)
    forward = torch.compile(model, dynamic=True) if compiled else model

    @torch.inference_mode()
    def infer(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Logits:
        logits: Logits = forward(torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device)).cpu().numpy()
        return logits

    return PaddedPeer(name, precision, infer, batch_sizes, by_length=not plain)


def onnx_peer(name: str, checkpoint: Checkpoint, precision: str) -> PaddedPeer:
    """Batches of texts of similar length through ONNX Runtime with all graph optimizations, on CPU.

    Args:
        precision: ``fp32``, or ``int8`` for quantized linear weights.

    Raises:
        PeerMissingError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise PeerMissingError(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="polyhead-onnx-") as folder:
        path = Path(folder) / "fp32.onnx"
        _export_onnx(checkpoint, path)
        if precision == "int8":
            path = _quantized(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Otherwise its threads keep spinning while the next peer is measured.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def infer(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Logits:
        logits: Logits = session.run(None, {"input_ids": ids, "lengths": lengths})[0]
        return logits

    return PaddedPeer(name, precision, infer, (8, 1, 4))


def _export_onnx(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the model with inputs ``input_ids`` and ``lengths``, both of any size."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    length = torch.export.Dim("length", min=2, max=checkpoint.body.n_positions)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    torch.onnx.export(
        ReferenceClassifier(checkpoint, fused_gelu=True), EXAMPLE, str(path), input_names=["input_ids", "lengths"],
        output_names=["logits"], dynamic_shapes=({0: batch, 1: length}, {0: batch}), opset_version=20, dynamo=True,
        verbose=False,
    )  # fmt: skip


def _quantized(path: Path) -> Path:
    """Dynamic quantization with a scale per channel, in 7 bits on AVX2 without VNNI, where 8-bit products overflow."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = path.with_name("int8.onnx")
    quantize_dynamic(
        path, quantized, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8,
        reduce_range=not torch.cpu._is_vnni_supported(), use_external_data_format=True,
    )  # fmt: skip
    return quantized


def openvino_peer(name: str, checkpoint: Checkpoint, precision: str) -> PaddedPeer:
    """Batches of texts of similar length through OpenVINO, as one stream on all cores.

    OpenVINO converts the torch module directly, so that attention stays one operation.

    Raises:
        PeerMissingError: openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise PeerMissingError(str(error)) from error
    model = openvino.convert_model(ReferenceClassifier(checkpoint, fused_gelu=True), example_input=EXAMPLE)
    settings = {
        "INFERENCE_PRECISION_HINT": OPENVINO_HINTS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)

    def infer(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Logits:
        logits: Logits = compiled([ids, lengths])[0]
        return logits.copy()  # the runtime overwrites this memory in the next call

    return PaddedPeer(name, precision, infer, (8, 1, 4, 16))
