"""Computes `tile_attention` with Triton's interpreter, and compares it with attention in float32.

A program of its own, because Triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime import interpreter

from polyhead.engine.cuda.attention import CAUSAL, FULL, TILE_WIDTHS, is_attention, padded_attention
from polyhead.engine.cuda.attention_kernel import tile_attention
from tests.classifier.test_engine_cuda import CUDAForward, Pair, assert_near, random_texts

CPU = torch.device("cpu")


def mend_interpreter() -> None:
    """Mends two things in Triton 3.6's interpreter.

    With NumPy 2.4 it cannot loop up to a loaded number. It keeps bf16 as whole numbers of 16 bits and multiplies those.
    """
    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patch_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def dot_in_float32(self: Any, left: Any, right: Any, *others: Any) -> Any:
        left, right = (self.cast_impl(matrix, tl.float32) for matrix in (left, right))
        return dot(self, left, right, *others)

    interpreter._patch_lang_tensor = patch_index
    interpreter.InterpreterBuilder.create_dot = dot_in_float32


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=3),
    spare_texts=st.integers(0, 2),
    spare_tokens=st.integers(0, 70),
    width=st.sampled_from([16, 64]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    window=st.sampled_from([CAUSAL, FULL]),
    parts=st.integers(2, 3),
)
def check_any_texts(
    lengths: list[int], spare_texts: int, spare_tokens: int, width: int, dtype: torch.dtype, window: Any, parts: int
) -> None:
    """Near float32 in any batch, and each text the same bits as alone; rows of no text are NaN and do no harm."""
    torch.manual_seed(sum(lengths))
    heads, tokens = 2, sum(lengths)
    starts = torch.tensor([0, *lengths, *[0] * spare_texts]).cumsum(0).to(torch.int32)
    # Strides as in the forward pass: keys and values are parts of one matrix, and so may the queries be.
    packed = torch.randn(tokens + spare_tokens, parts, heads, width).to(dtype)
    packed[tokens:] = torch.nan
    key, value = packed[:, -2], packed[:, -1]
    counts, starts_q = lengths, starts
    query = packed[:, 0]
    if window == FULL:  # one query per text
        counts = [1] * len(lengths)
        starts_q = starts.new_tensor([0, *counts, *[0] * spare_texts]).cumsum(0).to(torch.int32)
        query = torch.randn(len(lengths) + spare_texts, heads, width).to(dtype)
        query[len(lengths) :] = torch.nan
    options: Any = {"scale": 0.3, "window_size": window}
    texts = (starts_q, starts, max(counts), max(lengths))
    computed = tile_attention(query, key, value, *texts, **options)
    expected = padded_attention(query.float(), key.float(), value.float(), *texts, **options)
    torch.testing.assert_close(computed[: sum(counts)].float(), expected[: sum(counts)], rtol=2**-7, atol=2**-7)
    for text, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        rows_q = slice(int(starts_q[text]), int(starts_q[text]) + count)
        rows_k = slice(int(starts[text]), int(starts[text]) + length)
        texts = (torch.tensor([0, count]).int(), torch.tensor([0, length]).int(), count, length)
        alone = tile_attention(query[rows_q], key[rows_k], value[rows_k], *texts, **options)
        assert torch.equal(alone, computed[rows_q]), f"text {text} of {lengths}"


def check_large_scores() -> None:
    """Scores of up to thousands, which overflow unless the largest is subtracted, in a text of more than four tiles."""
    torch.manual_seed(0)
    packed = (10 * torch.randn(300, 3, 1, 64)).to(torch.float16)
    texts = (torch.tensor([0, 300]).int(), torch.tensor([0, 300]).int(), 300, 300)
    options: Any = {"scale": 1.0, "window_size": CAUSAL}
    computed = tile_attention(*packed.unbind(1), *texts, **options)
    expected = padded_attention(*packed.float().unbind(1), *texts, **options)
    torch.testing.assert_close(computed.float(), expected, rtol=2**-7, atol=2**-7)


def check_refusals() -> None:
    """Strides that the kernel does not know are refused."""
    packed = torch.zeros(5, 3, 1, 16, dtype=torch.float16)
    query, key, value = packed.unbind(1)
    texts = (torch.tensor([0, 5]).int(), torch.tensor([0, 5]).int(), 5, 5)
    turned = torch.zeros(16, 5, 1, dtype=torch.float16).permute(1, 2, 0)
    for arguments in ((query, key, value.contiguous()), (turned, key, value), (query, turned, turned)):
        try:
            tile_attention(*arguments, *texts, scale=1.0, window_size=CAUSAL)
        except ValueError:
            continue
        raise AssertionError("taken")


def check_model(folder: Path) -> None:
    """A whole model's logits in bf16 are near those of transformers."""
    pair = Pair(folder, "base", None, {"n_embd": 64, "n_head": 2, "n_positions": 160})
    texts = random_texts([150, 64, 20, 7, 1], pair.checkpoint.body.vocab_size)
    expected = pair.expected(texts)
    forward = CUDAForward(pair.checkpoint, "cpu", "bf16", attention=tile_attention)
    assert_near(pair.logits(forward, texts), expected, expected.std())


def main(folder: str) -> None:
    mend_interpreter()
    with torch.inference_mode():
        for width in TILE_WIDTHS:
            assert is_attention(tile_attention, width, torch.bfloat16, CPU)
        check_any_texts()
        check_large_scores()
        check_refusals()
        check_model(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
