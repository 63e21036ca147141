"""The peers per device, the product among them, and how each is built.

A peer that cannot run here is left out, with the reason.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.peers.peer import Logits, Peer, PeerMissingError
from benchmarks.peers.runtimes import onnx_peer, openvino_peer, transformers_peer
from polyhead.checkpoint import Checkpoint
from polyhead.engine import PRECISIONS, Engine, Precision, fastest_precision
from polyhead.errors import OptionError

Build = Callable[[Checkpoint], Peer]

PRODUCT = "polyhead"
PRODUCTS: dict[str, Precision | None] = {PRODUCT: None} | {f"{PRODUCT}_{name}": name for name in PRECISIONS}
# What most people run first; the summary's ratio_hf compares with it.
PLAIN = {"cpu": "transformers_fp32_batch8", "cuda": "transformers_bf16_batch64"}


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
            raise PeerMissingError("this CPU has no bf16 instructions")  # it would be many times slower
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


def builders(device: str) -> dict[str, Build]:
    """All peers of a device by name, the product first."""
    products: dict[str, Build] = {
        name: partial(_product, name, device, precision) for name, precision in PRODUCTS.items()
    }
    return products | (_cuda() if device == "cuda" else _cpu())


def line_up(checkpoint: Checkpoint, device: str, names: Sequence[str]) -> tuple[list[Peer], dict[str, str]]:
    """Builds the named peers. Returns them and, for those that cannot run here, the reason."""
    build = builders(device)
    peers: list[Peer] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            peer = build[name](checkpoint)
            twins = [other.name for other in peers if name in PRODUCTS and other.precision == peer.precision]
            if PRODUCT in twins:
                raise PeerMissingError(f"{PRODUCT} itself runs this precision here")
            peers.append(peer)
        except PeerMissingError as error:
            left_out[name] = str(error)
    return peers, left_out


def _product(name: str, device: str, precision: Precision | None, checkpoint: Checkpoint) -> Peer:
    return ProductPeer(name, checkpoint, device, precision)


def _cpu() -> dict[str, Build]:
    best = fastest_precision(torch.device("cpu"))

    def bf16_only(build: Build) -> Build:
        return build if best == "bf16" else partial(_missing, "this CPU has no bf16 instructions")

    def fp32_only(build: Build) -> Build:
        return build if best == "fp32" else partial(_missing, "this CPU runs bf16, which is faster")

    def eager(name: str, precision: str, batch_sizes: Sequence[int], plain: bool) -> Build:
        return lambda c: transformers_peer(name, c, "cpu", precision, batch_sizes, plain=plain)

    def compiled(name: str, precision: str) -> Build:
        return lambda c: transformers_peer(name, c, "cpu", precision, (8, 1, 4, 16), compiled=True)

    return {
        "transformers_fp32_batch1": eager("transformers_fp32_batch1", "fp32", (1,), True),
        "transformers_fp32_batch8": eager("transformers_fp32_batch8", "fp32", (8,), True),
        "transformers_bf16_sorted": bf16_only(eager("transformers_bf16_sorted", "bf16", (8,), False)),
        "compile_bf16": bf16_only(compiled("compile_bf16", "bf16")),
        "compile_fp32": fp32_only(compiled("compile_fp32", "fp32")),
        "openvino": lambda c: openvino_peer("openvino", c, best),
        "onnx_fp32": lambda c: onnx_peer("onnx_fp32", c, "fp32"),
        "onnx_int8": lambda c: onnx_peer("onnx_int8", c, "int8"),
    }


def _cuda() -> dict[str, Build]:
    def tuned(name: str, attention: str = "sdpa", compiled: bool = False) -> Build:
        return lambda c: transformers_peer(
            name, c, "cuda", "bf16", (64, 128, 256), attention=attention, compiled=compiled
        )

    flash = tuned("flash_attention_2", "flash_attention_2")
    if importlib.util.find_spec("flash_attn") is None:
        flash = partial(_missing, "No module named 'flash_attn'")
    return {
        PLAIN["cuda"]: lambda c: transformers_peer(PLAIN["cuda"], c, "cuda", "bf16", (64,), plain=True),
        "transformers_bf16_sorted": tuned("transformers_bf16_sorted"),
        "compile_bf16": tuned("compile_bf16", compiled=True),
        "flash_attention_2": flash,
        "flex_attention": tuned("flex_attention", "flex_attention", compiled=True),
    }


def _missing(reason: str, checkpoint: Checkpoint) -> Peer:
    raise PeerMissingError(reason)
