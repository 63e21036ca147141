"""The AMX kernels, with plain C in place of the tile instructions, so that every processor tests their logic."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.checkpoint import Checkpoint, read_checkpoint
from polyhead.engine import Engine
from polyhead.engine.cpu import attention, layers
from polyhead.engine.cpu.bfloat16 import AMXBfloat16Linear, AMXBfloat16MLP
from polyhead.engine.cpu.int8 import AMXInt8MLP, quantise, quantise_weight
from polyhead.engine.cpu.kernels import amx as amx_module
from polyhead.engine.cpu.kernels.amx import AMXProducts, load_checked
from polyhead.engine.cpu.kernels.amx_attention import AMXAttention
from tests.classifier.amx_calls import MLPS, add_mlp, drawn, packed_mlp
from tests.threads import threads
from tests.tiny import MAX_LENGTH, write_tiny_checkpoint

SHAPES = ((64, 64), (192, 832), (832, 128), (1600, 64))  # one part of the inner dimension, and several
FINISHES = ("to_bf16", "to_float", "add_bf16", "add_float")
ROWS = 80


@pytest.fixture(scope="module")
def amx(amx_stand_in: Path) -> AMXProducts:
    """The products."""
    return AMXProducts(amx_stand_in)


@pytest.fixture(scope="module")
def amx_attention(amx_stand_in: Path) -> AMXAttention:
    """Attention."""
    return AMXAttention(amx_stand_in)


def out_for(finish: str, columns: int) -> torch.Tensor:
    """What a product adds to, or overwrites."""
    return drawn(ROWS, columns).to(torch.bfloat16 if finish.endswith("bf16") else torch.float32)


def test_a_product_by_hand(amx: AMXProducts) -> None:
    """Column n of the weight holds n, row r of x holds r: each result is 64 * r * n, plus the bias n."""
    x = torch.arange(3.0).expand(64, 3).T.bfloat16().contiguous()
    weight, bias = torch.arange(64.0).expand(64, 64), torch.arange(64.0)
    found = amx.product(x, amx.pack_bf16(weight, bias), "to_float", torch.empty(3, 64))
    assert [row.tolist() for row in found] == [[64 * r * n + n for n in range(64)] for r in range(3)]


def test_an_8_bit_product_by_hand(amx: AMXProducts) -> None:
    """An x of q means q - 128; scales per row and per column multiply the whole sums, and the bias is added."""
    x = torch.tensor([[128], [129], [0]], dtype=torch.uint8).expand(3, 64).contiguous()
    weight = torch.full((64, 64), -127, dtype=torch.int8)
    packed = amx.pack_int8(weight, torch.full((64,), 0.5), torch.full((64,), 7.0))
    found = amx.product(x, packed, "to_float", torch.empty(3, 64), torch.tensor([1.0, 2.0, 1.0]))
    # 0; 64 * 1 * -127 * 2 * 0.5; 64 * -128 * -127 * 0.5
    assert [set(row.tolist()) for row in found] == [{7.0}, {-8128.0 + 7}, {520192.0 + 7}]


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize(("inner", "columns"), SHAPES)
def test_products_are_float64s(amx: AMXProducts, inner: int, columns: int, finish: str) -> None:
    """Products of bfloat16 are exact and sums are float32; only a bfloat16 result rounds more."""
    x, weight, bias = drawn(ROWS, inner).bfloat16(), drawn(inner, columns) / inner**0.5, drawn(columns)
    out = out_for(finish, columns)
    wanted = x.double() @ weight.bfloat16().double() + bias + (out.double() if finish.startswith("add") else 0)
    amx.product(x, amx.pack_bf16(weight, bias), finish, out)
    torch.testing.assert_close(out.double(), wanted, atol=2e-5, rtol=2e-6 if finish.endswith("float") else 0.004)


@pytest.mark.parametrize("finish", ["to_float", "add_float"])
@pytest.mark.parametrize(("inner", "columns"), SHAPES)
def test_8_bit_products_are_float64s(amx: AMXProducts, inner: int, columns: int, finish: str) -> None:
    """Sums are whole numbers, so only scaling rounds."""
    q, scales = quantise(drawn(ROWS, inner), 127)
    weight, steps = quantise_weight(drawn(inner, columns))
    out = out_for(finish, columns)
    wanted = (q.double() - 128) * scales[:, None] @ (weight.double() * steps) + 0.5
    wanted += out if finish.startswith("add") else 0
    amx.product(q, amx.pack_int8(weight, steps, torch.full((columns,), 0.5)), finish, out, scales)
    torch.testing.assert_close(out.double(), wanted, atol=1e-4, rtol=2e-6)


WIDTHS = [(64, 128), (64, 1664), (832, 192)]  # parts of the first or of the second inner dimension


@pytest.mark.parametrize(("precision", "dtype"), MLPS)
@pytest.mark.parametrize(("width", "hidden"), WIDTHS)
def test_an_mlp_is_pytorchs(amx: AMXProducts, precision: str, dtype: torch.dtype, width: int, hidden: int) -> None:
    """The tanh form of GELU between two products, added to a residual; the precision's rounding is all that differs."""
    x, residual = drawn(ROWS, width), drawn(ROWS, width).to(dtype)
    up, down = drawn(width, hidden) / width**0.5, drawn(hidden, width) / hidden**0.5
    wanted = residual + torch.addmm(drawn(width), F.gelu(torch.addmm(drawn(hidden), x, up), approximate="tanh"), down)
    found = add_mlp(amx, packed_mlp(amx, precision, width, hidden), x, residual)
    error = (found - wanted).square().mean().sqrt() / wanted.std()
    assert error < (0.005 if dtype == torch.bfloat16 or precision == "bf16" else 0.015)


@pytest.mark.parametrize(("precision", "dtype"), MLPS)
@pytest.mark.parametrize(("width", "hidden"), WIDTHS)
def test_threads_change_no_bit(amx: AMXProducts, precision: str, dtype: torch.dtype, width: int, hidden: int) -> None:
    """Two threads divide the columns of two products; one thread computes them in one pass."""
    packed, x, residual = packed_mlp(amx, precision, width, hidden), drawn(ROWS, width), drawn(ROWS, width).to(dtype)
    alone = add_mlp(amx, packed, x, residual)
    with threads(2):
        divided = add_mlp(amx, packed, x, residual)
    assert divided.equal(alone)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.permutations(range(ROWS)), number=st.integers(1, ROWS))
@pytest.mark.parametrize("mlp", MLPS)
def test_a_row_has_the_same_bits_at_any_place(
    amx: AMXProducts, mlp: tuple[str, torch.dtype], rows: list[int], number: int
) -> None:
    """Neither the number of other rows nor a row's place among them changes a bit of its result."""
    precision, dtype = mlp
    x, residual = drawn(ROWS, 192), drawn(ROWS, 192).to(dtype)
    packed = packed_mlp(amx, precision, 192, 832)
    chosen = torch.tensor(rows[:number])
    some = add_mlp(amx, packed, x[chosen].contiguous(), residual[chosen].contiguous())
    assert some.equal(add_mlp(amx, packed, x, residual)[chosen])


@pytest.mark.parametrize("mlp", MLPS)
def test_many_rows_pass_in_shares(amx: AMXProducts, mlp: tuple[str, torch.dtype]) -> None:
    """600 rows pass in two shares, and each has the bits that it has alone."""
    precision, dtype = mlp
    packed, x, residual = packed_mlp(amx, precision, 64, 128), drawn(600, 64), drawn(600, 64).to(dtype)
    together = add_mlp(amx, packed, x, residual)
    for row in (0, 299, 319, 320, 599):
        assert add_mlp(amx, packed, x[row : row + 1], residual[row : row + 1]).equal(together[row : row + 1])


@pytest.mark.parametrize("mlp", MLPS)
def test_a_nan_stays_in_its_row(amx: AMXProducts, mlp: tuple[str, torch.dtype]) -> None:
    """A damaged text must not look healthy, and must not spoil another text."""
    precision, dtype = mlp
    x = drawn(20, 64)
    x[3, 5] = torch.nan
    found = add_mlp(amx, packed_mlp(amx, precision, 64, 128), x, drawn(20, 64).to(dtype))
    assert found.isnan().all(1).tolist() == [row == 3 for row in range(20)]
    assert found.isnan().any(1).tolist() == [row == 3 for row in range(20)]


def test_tensors_that_c_would_misread_are_refused(amx: AMXProducts) -> None:
    """Other shapes and types are errors instead of wrong answers."""
    packed = amx.pack_bf16(torch.ones(64, 128), torch.ones(128))
    x, out = torch.ones(2, 64).bfloat16(), torch.ones(2, 128)
    for arguments in ((x.float(), out), (x, out.bfloat16()), (x, out[:, :64]), (torch.ones(2, 128).bfloat16(), out)):
        with pytest.raises(TypeError, match="kernels take dense"):
            amx.product(arguments[0], packed, "to_float", arguments[1])
    with pytest.raises(TypeError, match="multiples of 64"):
        amx.pack_bf16(torch.ones(64, 100), torch.ones(100))
    with pytest.raises(TypeError, match="need their scales"):
        amx.product(x.to(torch.uint8), amx.pack_int8(torch.ones(64, 128, dtype=torch.int8), *torch.ones(2, 128)),
                    "to_float", out)  # fmt: skip


# -- In the engine ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model whose weights are multiples of 64, as GPT-2's are."""
    path = tmp_path_factory.mktemp("wide") / "checkpoint"
    write_tiny_checkpoint(path, "hidden_state_concat", n_embd=128, n_head=2, n_layer=2)
    return read_checkpoint(path)


@pytest.fixture(scope="module", params=["bf16", "int8"])
def engine(
    request: pytest.FixtureRequest, amx: AMXProducts, amx_attention: AMXAttention, checkpoint: Checkpoint
) -> Iterator[Engine]:
    """An engine with two threads, whose products and attention are the stand-in's.

    Of its two int8 blocks the first stays in bf16.
    """
    with pytest.MonkeyPatch.context() as patch, threads(2):
        patch.setattr(layers, "AMX", amx)
        patch.setattr(attention, "AMX_ATTENTION", amx_attention)
        patch.setattr(layers, "BLOCKS_PER_KEPT", 2)
        engine = Engine(checkpoint, precision=request.param)
        kinds = [type(block.mlp) for block in engine.forward.blocks]
        assert kinds == [AMXBfloat16MLP, {"bf16": AMXBfloat16MLP, "int8": AMXInt8MLP}[request.param]]
        assert {block.qkv_dtype for block in engine.forward.blocks} == {torch.bfloat16}
        yield engine


@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, MAX_LENGTH), min_size=2, max_size=12))
def test_a_text_alone_has_the_same_bits_in_any_batch(engine: Engine, lengths: list[int]) -> None:
    """The engine divides a batch among workers, and a single text's products among threads: not one bit changes."""
    batch = [[(7 * row + place) % 60 for place in range(length)] for row, length in enumerate(lengths)]
    with threads(2):
        together = engine.logits(batch)
        alone = np.concatenate([engine.logits([ids]) for ids in batch])
    assert engine.is_batch_invariant
    np.testing.assert_array_equal(alone, together)


def test_answers_are_near_float32s(engine: Engine, checkpoint: Checkpoint) -> None:
    """Logits differ from those of float32 by the precision's rounding, as those of oneDNN's products do."""
    ids = [[(7 * row + place) % 50 for place in range(length)] for row, length in enumerate([1, 3, 20, 31, 48])]
    exact = Engine(checkpoint).logits(ids)
    found = engine.logits(ids)
    other = Engine(checkpoint, precision=engine.precision).logits(ids)
    rms = [float(np.sqrt(((logits - exact) ** 2).mean())) for logits in (found, other)]
    assert 0 < rms[0] < 1.3 * rms[1]


def test_a_model_that_does_not_fit_takes_onednn(
    amx: AMXProducts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An MLP of 500 columns does not fill tiles of 64, so all of that model's products are oneDNN's."""
    monkeypatch.setattr(layers, "AMX", amx)
    write_tiny_checkpoint(tmp_path / "c", n_embd=128, n_head=2, n_inner=500)
    engine = Engine(read_checkpoint(tmp_path / "c"), precision="bf16")
    assert not isinstance(engine.forward.blocks[0].attn_proj, AMXBfloat16Linear)


# -- Loading ------------------------------------------------------------------------------------------------------


@pytest.fixture
def load_here(monkeypatch: pytest.MonkeyPatch, amx_stand_in: Path, tmp_path: Path) -> Callable[..., AMXProducts | None]:
    """Loads the products as on a processor with or without AMX whose compiled library is the stand-in."""
    for path in amx_stand_in.parent.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "kernels_AMX.so").symlink_to(amx_stand_in)
    monkeypatch.setattr(amx_module, "__file__", str(tmp_path / "amx.py"))

    def load(has_amx: bool = True) -> AMXProducts | None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
        return load_checked(AMXProducts, "products", "oneDNN computes them")

    return load


def test_kernels_that_pass_the_check_are_used(
    load_here: Callable[..., AMXProducts | None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a processor with AMX the log says that products run there; POLYHEAD_AMX=off turns them off."""
    caplog.set_level(logging.INFO)
    assert load_here(has_amx=False) is None
    assert not caplog.messages
    assert load_here() is not None
    assert caplog.messages == ["the CPU engine computes its products on AMX"]
    monkeypatch.setenv("POLYHEAD_AMX", "off")
    assert load_here() is None


def test_wrong_products_are_not_used(
    load_here: Callable[..., AMXProducts | None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a small product is wrong at load, oneDNN computes the products, and the log says why."""
    pack = AMXProducts.pack_bf16
    monkeypatch.setattr(AMXProducts, "pack_bf16", lambda self, weight, bias: pack(self, 1.2 * weight, bias))
    assert load_here() is None
    assert "oneDNN computes them: a small bf16 product on AMX is off by 0.1" in caplog.text


def test_a_processor_without_amx_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The library for AMX refuses a processor that lacks it, before any tile instruction runs."""
    if torch.cpu._is_amx_tile_supported():
        pytest.skip("this processor has AMX")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert load_checked(AMXProducts, "products", "oneDNN computes them") is None
    assert "oneDNN computes them: the processor lacks AMX" in caplog.text


def test_a_stale_library_is_not_loaded(amx_stand_in: Path, tmp_path: Path) -> None:
    """A library that was compiled from other sources might misread its arguments."""
    (tmp_path / "amx.c").write_text("/* changed */", encoding="utf-8")
    (tmp_path / amx_stand_in.name).symlink_to(amx_stand_in)
    with pytest.raises(OSError, match="compiled from other sources"):
        AMXProducts(tmp_path / amx_stand_in.name)
