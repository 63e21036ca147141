"""The C kernels compute the same as PyTorch, for every target; so does the engine without them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.checkpoint import read_checkpoint
from polyhead.engine import Engine
from polyhead.engine.cpu import attention, float32, int8, kernels
from polyhead.engine.cpu.kernels import GELU_FLOOR, Kernels
from polyhead.engine.cpu.kernels.training import TrainingKernels
from tests.build_hook import compiled_targets, copy_sources, hatch_build
from tests.threads import threads
from tests.tiny import write_tiny_checkpoint

TYPES = (torch.float32, torch.bfloat16)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 0.02}  # bfloat16 values of up to 4 lie 0.016 apart
HEADS = 2


@pytest.fixture(scope="module", params=compiled_targets())
def compiled(request: pytest.FixtureRequest) -> Kernels:
    """The kernels of one target."""
    return Kernels(Path(kernels.__file__).with_name(f"kernels_{request.param}.so"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Other tests use one."""
    with threads(2):
        yield


def attended(qkv: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """PyTorch's attention, one text at a time, in float64."""
    rows = []
    for text in qkv.double().split(lengths):
        query, key, value = text.view(1, len(text), 3, HEADS, kernels.HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.125)
        rows.append(context.transpose(1, 2).reshape(len(text), -1))
    return torch.cat(rows)


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=6), size=st.floats(0.01, 2), seed=st.integers(0, 9999)
)
def test_attention_is_pytorchs(
    compiled: Kernels, dtype: torch.dtype, lengths: list[int], size: float, seed: int
) -> None:
    """Texts of any lengths side by side; each attends only to itself."""
    drawn = torch.randn(sum(lengths), 3 * HEADS * kernels.HEAD_WIDTH, generator=torch.Generator().manual_seed(seed))
    qkv = (size * drawn).to(dtype)
    out = torch.full((sum(lengths), HEADS * kernels.HEAD_WIDTH), torch.nan, dtype=dtype)
    compiled.attend(qkv, torch.tensor([0, *lengths]).cumsum(0), HEADS, 0.125, out)
    atol = (
        3 * ROUNDING[dtype] * max(1.0, size) ** 3
    )  # the scores' rounding, which grows with size squared, times a value
    torch.testing.assert_close(out.double(), attended(qkv, lengths), atol=atol, rtol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", TYPES)
def test_attention_of_last_tokens_is_the_same(compiled: Kernels, dtype: torch.dtype) -> None:
    """Attention for only the last tokens equals their rows in the attention of all tokens."""
    lengths, channels = [1, 2, 17, 130], HEADS * kernels.HEAD_WIDTH
    starts = torch.tensor([0, *lengths]).cumsum(0)
    qkv = torch.randn(sum(lengths), 3 * channels).to(dtype)
    last = starts[1:] - 1
    query, kv = qkv[last, :channels].contiguous(), qkv[:, channels:].contiguous()
    found = compiled.attend_last(query, kv, starts, HEADS, 0.125)
    torch.testing.assert_close(found.double(), attended(qkv, lengths)[last], atol=ROUNDING[dtype], rtol=ROUNDING[dtype])


@pytest.mark.usefixtures("two_threads")
def test_long_texts_and_several_threads(compiled: Kernels) -> None:
    """A text of 1,024 tokens; the heads are divided among threads."""
    qkv = torch.randn(1024 + 300, 3 * HEADS * kernels.HEAD_WIDTH)
    out = torch.empty(len(qkv), HEADS * kernels.HEAD_WIDTH)
    compiled.attend(qkv, torch.tensor([0, 1024, 1324]), HEADS, 0.125, out)
    torch.testing.assert_close(out.double(), attended(qkv, [1024, 300]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("columns", [1, 31, 64, 100, 768])
def test_layer_norm_is_pytorchs(compiled: Kernels, dtype: torch.dtype, columns: int) -> None:
    """Rows far from zero, of zeros, and of any size; a NaN stays in its row."""
    x = (torch.randn(9, columns) * torch.logspace(-1, 3, 9)[:, None] + 5).to(dtype)
    x[3] = 0
    weight, bias = torch.randn(columns), torch.randn(columns)
    found = compiled.layer_norm(x, weight, bias, 1e-5)
    wanted = F.layer_norm(x.double(), (columns,), weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-5 if dtype == torch.float32 else 0.004)
    x[4, columns // 2] = torch.nan
    assert compiled.layer_norm(x, weight, bias, 1e-5).isnan().any(1).tolist() == [row == 4 for row in range(9)]


def test_layer_norm_by_hand(compiled: Kernels) -> None:
    """Of 1 and 3 the mean is 2 and the deviation 1: normalized to -1 and 1, then times the weight plus the bias."""
    found = compiled.layer_norm(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0, 10.0]), torch.tensor([0.5, 0.0]), 0.0)
    assert found.tolist() == [[-1.5, 10.0]]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", TYPES)
def test_a_norm_has_the_same_bits_with_any_other_rows(compiled: Kernels, dtype: torch.dtype) -> None:
    """600 rows are divided among threads, and each has the bits that it has alone."""
    x, weight, bias = torch.randn(600, 200).to(dtype), torch.randn(200), torch.randn(200)
    together = compiled.layer_norm(x, weight, bias, 1e-5)
    for row in (0, 299, 300, 599):
        assert compiled.layer_norm(x[row : row + 1], weight, bias, 1e-5).equal(together[row : row + 1])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("threads", ["one", "two"])
def test_gelu_is_pytorchs(compiled: Kernels, dtype: torch.dtype, threads: str, request: pytest.FixtureRequest) -> None:
    """Values of every size, including infinities, in place; NaN stays NaN."""
    if threads == "two":
        request.getfixturevalue("two_threads")
    x = torch.cat([torch.linspace(-12, 12, 300_001), torch.tensor([-1e30, -3e38, 1e30, torch.inf, -3e4, 0.0])])[
        None
    ].to(dtype)
    wanted = F.gelu(x.double(), approximate="tanh")
    found = compiled.gelu(x.clone())
    torch.testing.assert_close(found, wanted.to(dtype), atol=5e-7, rtol=2e-6 if dtype == torch.float32 else 0.008)
    assert compiled.gelu(torch.tensor([[1.0, torch.nan]], dtype=dtype)).isnan().tolist() == [[False, True]]


def test_a_row_is_quantised_by_its_own_scale(compiled: Kernels) -> None:
    """Each value is off by at most half a step, whatever the other rows hold; rows of zeros stay zeros."""
    x = torch.randn(7, 100) * torch.logspace(-3, 3, 7)[:, None]
    x[3] = 0
    q, scales = compiled.quantise(x, 127)
    assert ((q.float() - 128) * scales[:, None] - x).abs().le(0.501 * scales[:, None]).all()
    torch.testing.assert_close(scales, x.abs().amax(1).clamp_min(1e-12) / 127)
    alone, _ = compiled.quantise(x[2:3], 127)
    assert alone.equal(q[2:3])


@pytest.mark.parametrize("levels", [127, 255])
def test_gelu_to_8_bits(compiled: Kernels, levels: int) -> None:
    """Scale, bias, GELU and quantising in one pass equal the separate steps, within half a step."""
    product, scales, bias = 5 * torch.randn(9, 130), torch.rand(9) + 0.1, torch.randn(130)
    wanted = F.gelu(product.double() * scales[:, None] + bias, approximate="tanh")
    q, new = compiled.gelu_quantise(product.clone(), scales, bias, levels)
    assert q.max() <= levels
    assert (q * new[:, None] - GELU_FLOOR - wanted).abs().le(0.505 * new[:, None]).all()


def test_products_are_rescaled(compiled: Kernels) -> None:
    """The result is stored in a matrix, or added to it."""
    product, scales, bias, out = torch.randn(5, 33), torch.rand(5), torch.randn(33), torch.randn(5, 33)
    wanted = product * scales[:, None] + bias
    torch.testing.assert_close(compiled.rescale(product, scales, bias, out.clone(), adds=True), out + wanted)
    torch.testing.assert_close(compiled.rescale(product, scales, bias, out.clone(), adds=False), wanted)


def test_a_nan_is_not_quantised_away(compiled: Kernels) -> None:
    """A damaged model must not look healthy: a row with a NaN gets the scale NaN."""
    x = torch.ones(2, 40)
    x[1, 7] = torch.nan
    assert compiled.quantise(x, 127)[1].isnan().tolist() == [False, True]
    _, scales = compiled.gelu_quantise(x.clone(), torch.ones(2), torch.zeros(40), 255)
    assert scales.isnan().tolist() == [False, True]
    out = torch.empty(2, HEADS * kernels.HEAD_WIDTH)
    qkv = torch.ones(2, 3 * HEADS * kernels.HEAD_WIDTH)
    qkv[1, 5] = torch.nan
    compiled.attend(qkv, torch.tensor([0, 1, 2]), HEADS, 0.125, out)
    assert out[0].isfinite().all()
    assert out[1, : kernels.HEAD_WIDTH].isnan().all()


def test_tensors_that_c_would_misread_are_refused(compiled: Kernels) -> None:
    """Strided tensors and other types are errors instead of wrong answers."""
    with pytest.raises(TypeError, match=r"dense torch.float32"):
        compiled.quantise(torch.ones(4, 6)[:, ::2], 127)
    with pytest.raises(TypeError, match=r"dense torch.float32 of \(1, 3\), got torch.float64"):
        compiled.gelu(torch.ones(1, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"of \(4, 6\), got torch.float32 of \(2, 6\)"):
        compiled.rescale(torch.ones(4, 6), torch.ones(4), torch.ones(6), torch.ones(2, 6), adds=False)
    qkv, out = torch.ones(4, 3 * HEADS * kernels.HEAD_WIDTH), torch.ones(4, HEADS * kernels.HEAD_WIDTH)
    for starts in ([0, 5], [1, 4], [0, 3, 3, 4]):
        with pytest.raises(TypeError, match="ascending rows from 0 to at most 4"):
            compiled.attend(qkv, torch.tensor(starts), HEADS, 0.125, out)


def test_a_stale_library_is_not_loaded(tmp_path: Path) -> None:
    """A library that was compiled from other sources might misread its arguments, those of training too."""
    copy_sources(tmp_path)
    library = Path(shutil.copy(kernels.LIBRARY, tmp_path))
    for kind in (Kernels, TrainingKernels):
        kind(library)
    with (tmp_path / "training.c").open("a") as source:
        source.write("/* changed */")
    for kind in (Kernels, TrainingKernels):
        with pytest.raises(OSError, match="compiled from other sources; install polyhead again"):
            kind(library)


@pytest.mark.parametrize("compiler", ["false", "/no/such/cc -m64", "'"])
def test_an_installation_works_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compiler: str
) -> None:
    """It prints a line and leaves no library, also no stale one."""
    build = hatch_build()
    folder = tmp_path / build.FOLDER
    folder.mkdir(parents=True)
    copy_sources(folder)
    sources = {path.name for path in folder.iterdir()}
    (folder / "kernels_AVX2.so").write_text("stale", encoding="utf-8")
    monkeypatch.setenv("CC", compiler)
    data = {"artifacts": []}
    hook = build.KernelsHook(str(tmp_path), {}, None, None, str(tmp_path), "wheel")
    hook.initialize("editable", data)
    assert data == {"artifacts": []}
    printed = capsys.readouterr().err
    assert all(f"runs without its kernels for {target}" in printed for target in ("AVX512", "AVX2", "AMX"))
    assert {path.name for path in folder.iterdir()} == sources


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_an_engine_without_kernels_answers_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """If nothing was compiled, PyTorch's operations give the same logits, up to the precision's rounding."""
    write_tiny_checkpoint(tmp_path, n_embd=128, n_head=2)
    checkpoint = read_checkpoint(tmp_path)
    ids = [[(7 * row + place) % 50 for place in range(length)] for row, length in enumerate([1, 3, 3, 20, 31, 32])]
    assert kernels.KERNELS is not None
    wanted = Engine(checkpoint, precision=precision).logits(ids)
    for module in (attention, float32, int8):
        monkeypatch.setattr(module, "KERNELS", None)
    found = Engine(checkpoint, precision=precision).logits(ids)
    np.testing.assert_allclose(found, wanted, atol={"fp32": 1e-5, "bf16": 0.03, "int8": 0.03}[precision])
