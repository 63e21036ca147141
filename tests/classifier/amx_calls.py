"""What tests call of the AMX kernels, in their own process or in one on AMX, which imports this module.

Most functions take a library and return bits, so that a test compares two libraries.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from polyhead.checkpoint import read_checkpoint
from polyhead.engine import Engine
from polyhead.engine.cpu import attention, layers
from polyhead.engine.cpu.int8 import quantise, quantise_weight
from polyhead.engine.cpu.kernels import HEAD_WIDTH
from polyhead.engine.cpu.kernels.amx import AMXProducts, Finish, PackedWeight, load_checked
from polyhead.engine.cpu.kernels.amx_attention import AMXAttention
from polyhead.precision import Precision
from tests.classifier.amx_emulator import LIBRARY, counted
from tests.threads import threads

HEADS = 2
CHANNELS = HEADS * HEAD_WIDTH
MLPS = [("bf16", torch.bfloat16), ("bf16", torch.float32), ("int8", torch.float32)]  # precision, residual
Bits = list[np.ndarray]


def drawn(*shape: int, seed: int | None = None) -> torch.Tensor:
    """Normal values, the same for a first dimension or a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0] if seed is None else seed))


def packed_mlp(amx: AMXProducts, precision: str, width: int, hidden: int) -> tuple[PackedWeight, PackedWeight]:
    """The packed weights of an MLP."""
    up, down = drawn(width, hidden) / width**0.5, drawn(hidden, width) / hidden**0.5
    biases = drawn(hidden), drawn(width)
    if precision == "bf16":
        return amx.pack_bf16(up, biases[0]), amx.pack_bf16(down, biases[1])
    return (
        amx.pack_int8(*quantise_weight(up), biases[0]),
        amx.pack_int8(*quantise_weight(down), biases[1], after_gelu=True),
    )


def add_mlp(
    amx: AMXProducts, packed: tuple[PackedWeight, PackedWeight], x: torch.Tensor, residual: torch.Tensor
) -> torch.Tensor:
    """A residual to which an MLP's result for float32 `x` is added."""
    residual = residual.clone()
    if packed[0].is_int8:
        q, scales = quantise(x, 127)
        amx.add_mlp(residual, q, *packed, scales)
    else:
        amx.add_mlp(residual, x.bfloat16(), *packed)
    return residual


def bits(values: torch.Tensor) -> np.ndarray:
    """Whole numbers that are equal if the values are, also for -0 and NaN."""
    return values.view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32).numpy()


def products(library: Path, rows: int, inner: int, columns: int) -> Bits:
    """Results of all finishes."""
    amx = AMXProducts(library)
    x, weight, bias = drawn(rows, inner, seed=1), drawn(inner, columns, seed=2) / inner**0.5, drawn(columns, seed=3)
    residual = drawn(rows, columns, seed=4)
    packed = amx.pack_bf16(weight, bias)
    finishes: tuple[Finish, ...] = ("to_bf16", "to_float", "add_bf16", "add_float")
    found = []
    for finish in finishes:
        out = residual.to(torch.bfloat16 if finish.endswith("bf16") else torch.float32, copy=True)
        found.append(amx.product(x.bfloat16(), packed, finish, out))
    q, scales = quantise(x, 127)
    packed = amx.pack_int8(*quantise_weight(weight), bias)
    for finish in ("to_bf16", "to_float", "add_float"):
        out = residual.to(torch.bfloat16 if finish == "to_bf16" else torch.float32, copy=True)
        found.append(amx.product(q, packed, finish, out, scales))
    return [bits(values) for values in found]


def small_products(library: Path) -> Bits:
    """Products of a matrix whose values, products and sums go down to denormals, and of numbers that are not finite."""
    amx = AMXProducts(library)
    sizes = 2.0 ** torch.linspace(-133, 10, 64)
    x, weight = drawn(48, 64, seed=1) * sizes[:48, None], drawn(64, 64, seed=2) * 2.0 ** torch.linspace(-133, 0, 64)
    x[40, 3], x[41, 4] = torch.inf, torch.nan
    found = amx.product(x.bfloat16(), amx.pack_bf16(weight, torch.zeros(64)), "to_float", torch.empty(48, 64))
    return [bits(found[:40]), found[40:].isnan().numpy(), bits(found[42:])]


def mlps(library: Path, rows: int, width: int, hidden: int) -> Bits:
    """Results of one thread, which fuses both products, and of two, which divide the columns."""
    amx = AMXProducts(library)
    found = []
    for number in (1, 2):
        with threads(number):
            for precision, dtype in MLPS:
                packed = packed_mlp(amx, precision, width, hidden)
                found.append(add_mlp(amx, packed, drawn(rows, width, seed=1), drawn(rows, width, seed=2).to(dtype)))
    return [bits(values) for values in found]


def attentions(library: Path, seed: int) -> Bits:
    """Texts of random lengths and sizes; one is damaged, and the scores of one grow beyond the limit."""
    amx = AMXAttention(library)
    random = np.random.default_rng(seed)
    lengths = [*random.integers(1, 90, 6).tolist(), 16, 32, 129]
    qkv = drawn(sum(lengths), 3 * CHANNELS, seed=seed) * float(random.uniform(0.1, 3))
    texts = qkv.split(lengths)
    texts[1][0, CHANNELS] = torch.nan
    texts[2][:, :CHANNELS] = 1.0
    texts[2][:, CHANNELS : 2 * CHANNELS] += torch.linspace(0, 20, lengths[2])[:, None]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    found = []
    for number, dtype in ((1, torch.bfloat16), (2, torch.float32)):
        with threads(number):
            out = torch.full((len(qkv), CHANNELS), -1.0, dtype=dtype)
            amx.attend(qkv.bfloat16(), starts, HEADS, 0.125, out)
            found += [bits(torch.where(text.isnan(), torch.nan, text)) for text in out.split(lengths)]
    return found


def logits(library: Path, checkpoint: Path, precision: Precision) -> Bits:
    """An engine's logits of texts in a batch, then of each alone; workers and threads divide them."""
    ids = [[(7 * row + place) % 60 for place in range(length)] for row, length in enumerate([1, 40, 17, 3, 33, 48])]
    with pytest.MonkeyPatch.context() as patch, threads(2):
        patch.setattr(layers, "AMX", AMXProducts(library))
        patch.setattr(attention, "AMX_ATTENTION", AMXAttention(library))
        patch.setattr(layers, "BLOCKS_PER_KEPT", 2)  # of two int8 blocks the first stays in bf16
        engine = Engine(read_checkpoint(checkpoint), precision=precision)
        assert {block.qkv_dtype for block in engine.forward.blocks} == {torch.bfloat16}
        return [
            bits(torch.from_numpy(found))
            for found in (engine.logits(ids), np.concatenate([engine.logits([text]) for text in ids]))
        ]


def at_the_end_of_memory(values: torch.Tensor) -> torch.Tensor:
    """A copy; reading or writing the byte after it ends the process."""
    pages = -(-values.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + pages * mmap.PAGESIZE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    first = pages * mmap.PAGESIZE - values.nbytes
    place = torch.frombuffer(memory, dtype=torch.uint8)[first : first + values.nbytes]
    return place.view(values.dtype).view(values.shape).copy_(values)


def at_the_edge(rows: int) -> bool:
    """Products, an MLP and attention, all of whose tensors end where memory ends."""
    amx, attend = AMXProducts(LIBRARY), AMXAttention(LIBRARY).attend
    x = at_the_end_of_memory(drawn(rows, 64, seed=1).bfloat16())
    residual = at_the_end_of_memory(drawn(rows, 64, seed=2))
    q, scales = map(at_the_end_of_memory, quantise(drawn(rows, 64, seed=1), 127))
    amx.product(x, amx.pack_bf16(drawn(64, 64, seed=3), at_the_end_of_memory(drawn(64, seed=4))), "add_float", residual)
    for precision in ("bf16", "int8"):
        up, down = packed_mlp(amx, precision, 64, 128)
        amx.add_mlp(residual, *((q, up, down, scales) if up.is_int8 else (x, up, down)))
    qkv = at_the_end_of_memory(drawn(rows, 3 * CHANNELS, seed=5).bfloat16())
    out = at_the_end_of_memory(torch.empty(rows, CHANNELS))
    attend(qkv, torch.tensor([0, rows]), HEADS, 0.125, out)
    return bool(residual.isfinite().all() and out.isfinite().all())


def left_configs(config: bytes) -> list[bytes]:
    """The thread's tile configuration after calls, with another one before them."""
    emulator = ctypes.CDLL(None)
    amx, attend, found = AMXProducts(LIBRARY), AMXAttention(LIBRARY).attend, []
    qkv, starts, out = drawn(20, 3 * CHANNELS, seed=1).bfloat16(), torch.tensor([0, 20]), torch.empty(20, CHANNELS)
    packed, y = amx.pack_bf16(drawn(64, 64), drawn(64)), torch.empty(5, 64)
    calls: list[Callable[[], object]] = [
        lambda: amx.product(drawn(5, 64).bfloat16(), packed, "to_float", y),
        lambda: add_mlp(amx, packed_mlp(amx, "int8", 64, 64), drawn(5, 64), drawn(5, 64)),
        lambda: attend(qkv, starts, HEADS, 0.125, out),
    ]
    for call in calls:
        emulator.amx_emulator_ldtilecfg(config)
        call()
        after = ctypes.create_string_buffer(64)
        emulator.amx_emulator_sttilecfg(after)
        found.append(after.raw)
    emulator.amx_emulator_ldtilecfg(bytes(64))
    return found


def configs_of(number: int) -> tuple[int, int]:
    """How often a wide product and attention of many tokens configure and release tiles."""
    amx, attend = AMXProducts(LIBRARY), AMXAttention(LIBRARY).attend
    packed, x = amx.pack_bf16(drawn(64, 2048, seed=1), drawn(2048, seed=2)), drawn(64, 64, seed=3).bfloat16()
    with threads(number), counted() as counts:
        amx.product(x, packed, "to_float", torch.empty(64, 2048))
        qkv = drawn(300, 3 * CHANNELS, seed=4).bfloat16()
        attend(qkv, torch.tensor([0, 300]), HEADS, 0.125, torch.empty(300, CHANNELS))
    return counts["ldtilecfg"], counts["tilerelease"]


def counts_of(rows: int, inner: int, columns: int) -> dict[str, int]:
    """Instructions of a bf16 product."""
    amx = AMXProducts(LIBRARY)
    packed = amx.pack_bf16(torch.zeros(inner, columns), torch.zeros(columns))
    with counted() as counts:
        amx.product(torch.zeros(rows, inner).bfloat16(), packed, "to_bf16", torch.zeros(rows, columns).bfloat16())
    return counts


def requests(features: int, is_granted: bool) -> int:
    """The library's answer on a processor with these features of AMX."""
    library, emulator = ctypes.CDLL(str(LIBRARY)), ctypes.CDLL(None)
    found = ctypes.c_uint32.in_dll(emulator, "amx_emulator_features")
    granted = ctypes.c_int32.in_dll(emulator, "amx_emulator_is_granted")
    before, found.value, granted.value = found.value, features, is_granted
    answer = int(library.polyhead_amx_request())
    found.value, granted.value = before, 1
    library.polyhead_amx_request()
    return answer


def loaded() -> list[str]:
    """What the log says when the library is loaded and checked, as an import does it on AMX."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("polyhead.engine.cpu.kernels.amx")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        load_checked(AMXProducts, "products", "")
        load_checked(AMXAttention, "attention", "")
    logger.removeHandler(handler)
    return messages
