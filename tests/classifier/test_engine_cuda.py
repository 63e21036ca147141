"""The CUDA forward pass, on the CPU with an attention as strict as flash attention; tests marked ``cuda`` use a GPU."""

from __future__ import annotations

import dataclasses
import logging
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.attention.varlen import varlen_attn

from polyhead.body import Body
from polyhead.checkpoint import read_checkpoint
from polyhead.engine.cuda.attention import (
    CAUSAL,
    FULL,
    attention_for,
    efficient_attention,
    is_attention,
    padded_attention,
)
from polyhead.engine.cuda.forward import CUDAForward
from polyhead.engine.cuda.packed import Graphs, Packed, PackedShape, Recording, graph_shapes, pack
from polyhead.engine.micro_batch import MicroBatch
from polyhead.engine.token_ids import checked, distinct_texts
from polyhead.errors import TokenIdsError
from tests.flash import flash_stand_in
from tests.tiny import MAX_LENGTH, write_tiny_checkpoint

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# How far bf16 may be from fp32, relative to the logits' standard deviation. On such models transformers in bf16 has a
# root mean square error of 0.015.
RMS_BF16, MAX_BF16 = 0.025, 0.15

HEADS: list[tuple[str, str | None, dict[str, Any]]] = [
    ("base", None, {}),
    ("base", None, {"n_layer": 1}),
    ("hidden_state_concat", "ConcatHeadSimple", {}),
    ("hidden_state_concat", "ConcatHeadSimple", {"n_layer": 2}),
    ("hidden_state_concat", "ConcatHeadSimple", {"n_layer": 1}),  # the embeddings too
    ("hidden_state_concat", "ConcatHeadExtended", {}),
    ("base", "tests.custom_head:TwoLayerHead", {"head_args": {"width": 16}}),
]


def micro_batch(texts: list[list[int]]) -> MicroBatch:
    """A micro-batch of the texts, ascending by length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return MicroBatch(rows=order, token_ids=[texts[i] for i in order])


def random_texts(lengths: list[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random texts of these lengths."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths]


def assert_near(computed: np.ndarray, expected: np.ndarray, spread: float) -> None:
    """Computed logits are as near as bf16 allows."""
    error = np.abs(computed - expected) / spread
    assert np.sqrt((error**2).mean()) < RMS_BF16
    assert error.max() < MAX_BF16


def rerun(run: Callable[[], torch.Tensor]) -> Recording:
    """A recording that computes again into the same output tensor, as a CUDA graph does."""
    output = run()
    return lambda: output.copy_(run()), output


class Pair:
    """A checkpoint, and the transformers model from which it was made."""

    def __init__(self, path: Path, architecture: Any, head_class: str | None, fields: dict[str, Any]) -> None:
        self.model = write_tiny_checkpoint(path, architecture, head_class=head_class, **fields)
        self.checkpoint = read_checkpoint(path)

    def expected(self, texts: list[list[int]]) -> np.ndarray:
        """Logits by transformers in fp32 on the CPU, one text at a time."""
        with torch.inference_mode():
            rows = [torch.tensor([ids]) for ids in texts]
            # The last id may be that of padding.
            return np.stack([self.model(row, attention_mask=torch.ones_like(row)).logits[0].numpy() for row in rows])

    def logits(self, forward: CUDAForward, texts: list[list[int]]) -> np.ndarray:
        """Logits by this forward pass, in the order of the texts."""
        batch = micro_batch(texts)
        with torch.inference_mode():
            computed = forward.logits(batch).cpu().numpy()
        result = np.empty_like(computed)
        result[batch.rows] = computed
        return result


@pytest.fixture(scope="module", params=HEADS, ids=lambda param: f"{param[0]}-{param[2]}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One checkpoint for each way to read hidden states."""
    return Pair(tmp_path_factory.mktemp("pair") / "checkpoint", *request.param)


@pytest.fixture(scope="module")
def forwards(pair: Pair) -> list[CUDAForward]:
    """Forward passes on the CPU in fp32: plain, with flash's stand-in, and with flash's stand-in and recordings."""
    return [
        CUDAForward(pair.checkpoint, "cpu", "fp32"),
        CUDAForward(pair.checkpoint, "cpu", "fp32", attention=flash_stand_in),
        CUDAForward(pair.checkpoint, "cpu", "fp32", attention=flash_stand_in, record=rerun),
    ]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_batch_equals_transformers(pair: Pair, forwards: list[CUDAForward], data: st.DataObject) -> None:
    """In any batch each text gets transformers' logits within 1e-5, with and without recorded shapes."""
    vocab = pair.checkpoint.body.vocab_size
    text = st.lists(st.integers(0, vocab - 1), min_size=1, max_size=MAX_LENGTH)
    texts = data.draw(st.lists(text, min_size=1, max_size=12))
    expected = pair.expected(texts)
    for forward in forwards:
        np.testing.assert_allclose(pair.logits(forward, texts), expected, atol=1e-5)


def test_more_texts_than_any_shape_holds(pair: Pair, forwards: list[CUDAForward]) -> None:
    """Many tiny texts fit no recorded shape and are computed without one."""
    texts = random_texts([1] * 270 + [2] * 20, pair.checkpoint.body.vocab_size)
    recorded = forwards[2]
    assert recorded.graphs
    assert recorded.graphs.shape_for(micro_batch(texts)) is None
    np.testing.assert_allclose(pair.logits(recorded, texts), pair.expected(texts), atol=1e-5)


def test_a_built_in_head_is_part_of_a_recording(pair: Pair, forwards: list[CUDAForward]) -> None:
    """A recorded pass gives the 8 logits of each text, or the head's input if the head is a user's own class."""
    forward = forwards[2]
    assert forward.graphs
    widths = {output.shape[1] for _, output in forward.graphs.recordings.values()}
    own = pair.checkpoint.spec.head_class.startswith("tests.")
    assert widths == {32 if own else 8}
    calls: list[int] = []
    forward.head.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    assert forward.logits(micro_batch([[1, 2], [3], [4]])).shape == (3, 8)
    # A recording here computes again what it recorded, with room for 64 texts.
    assert calls == [3 if own else 64]


def test_a_result_outlives_the_next_call(pair: Pair, forwards: list[CUDAForward]) -> None:
    """A later run of the same recorded pass does not overwrite an earlier result."""
    vocab = pair.checkpoint.body.vocab_size
    first = micro_batch(random_texts([9, 4], vocab, seed=1))
    kept = forwards[2].logits(first)
    before = kept.clone()
    for seed in range(2, 5):
        forwards[2].logits(micro_batch(random_texts([30, 8, 8], vocab, seed=seed)))
    torch.testing.assert_close(kept, before, rtol=0, atol=0)
    torch.testing.assert_close(forwards[2].logits(first), before, rtol=0, atol=0)


@pytest.mark.parametrize("record", [None, rerun])
def test_bf16_stays_near(pair: Pair, record: Any) -> None:
    """In bf16 logits stay within a few percent of their spread, as in transformers."""
    forward = CUDAForward(pair.checkpoint, "cpu", "bf16", attention=flash_stand_in, record=record)
    texts = random_texts([48, 40, 31, 17, 9, 3, 1], pair.checkpoint.body.vocab_size)
    expected = pair.expected(texts)
    assert_near(pair.logits(forward, texts), expected, expected.std())


@pytest.mark.parametrize(
    "fields",
    [
        {"activation_function": "gelu"},
        {"activation_function": "silu"},
        {"n_inner": 40},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"layer_norm_epsilon": 1e-3},
        {"n_head": 1},
    ],
)
def test_config_variants_equal_transformers(tmp_path: Path, fields: dict[str, Any]) -> None:
    """The forward pass honours every GPT-2 config field that changes the computation."""
    variant = Pair(tmp_path / "c", "base", None, fields)
    forward = CUDAForward(variant.checkpoint, "cpu", "fp32", attention=flash_stand_in)
    texts = random_texts([20, 11, 5, 1], variant.checkpoint.body.vocab_size)
    np.testing.assert_allclose(variant.logits(forward, texts), variant.expected(texts), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=10),
    spare_texts=st.integers(0, 3),
    spare_tokens=st.integers(0, 5),
)
def test_padded_attention_is_attention(lengths: list[int], spare_texts: int, spare_tokens: int) -> None:
    """Padding in groups equals one text at a time, causal or not; empty texts are ignored."""
    torch.manual_seed(0)
    lengths = sorted(lengths, reverse=True) + [0] * spare_texts
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    singles = starts.new_tensor([0, *(min(length, 1) for length in lengths)]).cumsum(0).to(torch.int32)
    tokens = int(starts[-1])
    query, key, value = torch.randn(3, tokens + spare_tokens, 2, 8)
    for starts_q, window in ((starts, CAUSAL), (singles, FULL)):
        arguments = (starts_q, starts, max(lengths), max(lengths))
        computed = padded_attention(query, key, value, *arguments, scale=0.3, window_size=window)
        expected = flash_stand_in(query, key, value, *arguments, scale=0.3, window_size=window)
        real = int(starts_q[-1])
        torch.testing.assert_close(computed[:real], expected[:real])


def test_an_attention_is_tried_before_it_is_used(caplog: pytest.LogCaptureFixture) -> None:
    """One that computes something else, or raises, is not used; on the CPU attention is padded, which the log says."""
    arguments = (8, torch.float32, torch.device("cpu"))
    assert is_attention(flash_stand_in, *arguments)
    assert not is_attention(lambda query, *_, **__: query, *arguments)
    assert not is_attention(efficient_attention, *arguments)  # PyTorch has no CPU kernel for it
    with caplog.at_level(logging.WARNING):
        assert attention_for(*arguments) is padded_attention
    assert "attention pads groups of texts" in caplog.text


def test_token_ids_become_parts_of_one_array() -> None:
    """Lists, tuples and arrays of any integer type are read alike; equal texts are found; no text at all is fine."""
    body = Body(vocab_size=100, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    first, second, third = checked([[5, 6], (7,), np.array([8, 9, 99])], body)
    assert (first.tolist(), second.tolist(), third.tolist()) == ([5, 6], [7], [8, 9, 99])
    assert first.base is third.base
    assert first.dtype == np.int32
    arrays = checked([array("i", [5, 6]), array("q", [7]), np.array([8], np.int64)], body)
    assert [ids.tolist() for ids in arrays] == [[5, 6], [7], [8]]
    with pytest.raises(TokenIdsError, match=r"text 1 has token id -1"):
        checked([[1], array("i", [2, -1])], body)
    assert checked([], body) == []
    distinct, places = distinct_texts(checked([[1, 2], [1], [1, 2], [2]], body))
    assert ([ids.tolist() for ids in distinct], places) == ([[1, 2], [1], [2]], [0, 1, 0, 2])


def test_packing() -> None:
    """Spare tokens belong to no text; spare texts have no tokens."""
    batch = MicroBatch(rows=[1, 0], token_ids=[[8, 9], [5, 6, 7]])
    shape = PackedShape(tokens=7, texts=4, longest=6)
    packed = Packed.view(pack(batch, shape, pinned=False), shape)
    assert packed.ids.tolist() == [8, 9, 5, 6, 7, 0, 0]
    assert packed.positions.tolist() == [0, 1, 0, 1, 2, 0, 0]
    assert packed.last.tolist() == [1, 4, 0, 0]
    assert packed.query_starts.tolist() == [0, 1, 2, 2, 2]
    assert packed.starts.tolist() == [0, 2, 5, 5, 5]


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([20], PackedShape(64, 64, 64)),
        ([64], PackedShape(64, 64, 64)),
        ([65], PackedShape(128, 128, 128)),
        ([3] * 64, PackedShape(192, 128, 192)),  # no token more than there are
        ([256, 200, 10], PackedShape(512, 128, 256)),
        ([257, 200, 10], PackedShape(512, 128, 512)),
        ([900, 100], PackedShape(1024, 128, 1000)),
        ([10] * 17, PackedShape(192, 128, 192)),
        ([256] * 16, PackedShape(4096, 128, 256)),
        ([256] * 16 + [1], PackedShape(5120, 160, 256)),
        ([64] * 20, PackedShape(1280, 128, 256)),
        ([64] * 20 + [1], PackedShape(1536, 128, 256)),
        ([256] * 32, PackedShape(8192, 256, 256)),
        ([256] * 32 + [1], None),
        ([1] * 128, PackedShape(128, 128, 128)),
        ([1] * 129, None),  # its texts fit only into a shape with too many spare tokens
        ([1001], None),
    ],
)
def test_a_batch_goes_to_the_smallest_shape(lengths: list[int], shape: PackedShape | None) -> None:
    """The smallest shape with room for the tokens, the texts and the longest text; None if there is none."""
    graphs = Graphs(graph_shapes(1000), lambda packed: packed.ids, rerun, torch.device("cpu"))
    assert graphs.shape_for(micro_batch([[0] * length for length in lengths])) == shape


def test_a_failed_recording_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If one shape cannot be recorded, none is used, because the failure may free what the others need."""
    made = 0

    def record(run: Callable[[], torch.Tensor]) -> Recording:
        nonlocal made
        made += 1
        if made > 3:
            raise RuntimeError("out of memory")
        return rerun(run)

    checkpoint = Pair(tmp_path / "c", "base", None, {})
    with caplog.at_level(logging.WARNING):
        forward = CUDAForward(checkpoint.checkpoint, "cpu", "fp32", attention=flash_stand_in, record=record)
    assert "no CUDA graphs: batches launch kernel by kernel, because PackedShape(tokens=5120" in caplog.text
    assert forward.graphs
    assert forward.graphs.shapes == []
    assert forward.graphs.recordings == {}
    texts = random_texts([20, 11], checkpoint.checkpoint.body.vocab_size)
    np.testing.assert_allclose(checkpoint.logits(forward, texts), checkpoint.expected(texts), atol=1e-5)


def test_torch_takes_what_it_is_given(pair: Pair) -> None:
    """PyTorch's own flash attention and fused GELU accept the shapes and dtypes of the calls, on the meta device."""
    forward = CUDAForward(pair.checkpoint, "meta", "bf16", attention=varlen_attn, record=rerun)
    forward.fuses_gelu = True
    for lengths in ([9, 4, 1], [1] * 200):  # recorded and not
        logits = forward.logits(micro_batch(random_texts(lengths, 100)))
        assert logits.shape == (len(lengths), 8)
        assert logits.dtype == torch.float32


@pytest.fixture(scope="module", params=["base", "hidden_state_concat"])
def on_gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, CUDAForward]:
    """A model with heads as wide as GPT-2's and texts of up to 1,024 tokens, and its forward pass on the GPU."""
    fields = {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_positions": 1024}
    wide = Pair(tmp_path_factory.mktemp("wide") / "c", request.param, None, fields)
    spec = wide.checkpoint.spec.model_copy(update={"max_length": 1024})
    wide.checkpoint = dataclasses.replace(wide.checkpoint, spec=spec)
    return wide, CUDAForward(wide.checkpoint, "cuda", "bf16")


@pytest.mark.cuda
@needs_cuda
def test_the_fast_paths_are_taken(on_gpu: tuple[Pair, CUDAForward]) -> None:
    """On sm_80 and newer: flash attention, GELU fused into its GEMM, and a graph per shape."""
    _, forward = on_gpu
    assert forward.attention is not padded_attention
    assert forward.fuses_gelu
    assert forward.graphs
    assert forward.graphs.shapes == graph_shapes(1024)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [64],
        [500, 300, 90, 5, 1],
        [1024] + [20] * 63,  # one long text among short ones
        [100] * 160 + [384],  # 16,384 tokens: more than any graph holds
        [1, 2, 3] * 500,  # more texts than any graph holds
        [2] * 100,
    ],
    ids=lambda lengths: f"{len(lengths)}-texts-{sum(lengths)}-tokens",
)
def test_gpu_equals_cpu(on_gpu: tuple[Pair, CUDAForward], lengths: list[int]) -> None:
    """In bf16 on the GPU logits are near transformers' in fp32 on the CPU, with and without graphs."""
    wide, forward = on_gpu
    texts = random_texts(lengths, wide.checkpoint.body.vocab_size)
    expected = wide.expected(texts)
    spread = wide.expected(random_texts([50] * 20, wide.checkpoint.body.vocab_size, seed=1)).std()
    assert_near(wide.logits(forward, texts), expected, spread)


@pytest.mark.cuda
@needs_cuda
def test_gpu_in_fp32_equals_cpu(on_gpu: tuple[Pair, CUDAForward]) -> None:
    """In fp32 too attention is packed and passes are recorded; logits are within 1e-4 of their spread."""
    wide, _ = on_gpu
    forward = CUDAForward(wide.checkpoint, "cuda", "fp32")
    assert forward.attention is efficient_attention
    assert forward.graphs
    assert forward.graphs.shapes == graph_shapes(1024)
    for lengths in ([700, 300, 90, 5, 1], [1024] * 9):  # recorded and not
        texts = random_texts(lengths, wide.checkpoint.body.vocab_size)
        expected = wide.expected(texts)
        np.testing.assert_allclose(wide.logits(forward, texts), expected, atol=1e-4 * max(1, expected.std()))


@pytest.mark.cuda
@needs_cuda
def test_graphs_change_nothing(on_gpu: tuple[Pair, CUDAForward]) -> None:
    """A replayed graph gives the same bits as its shape launched kernel by kernel, also the second time."""
    wide, forward = on_gpu
    assert forward.graphs
    for seed, shape in enumerate(forward.graphs.shapes * 2):
        lengths = [shape.longest, *([3] * min(shape.texts - 1, (shape.tokens - shape.longest) // 3))]
        batch = micro_batch(random_texts(lengths, wide.checkpoint.body.vocab_size, seed))
        with torch.inference_mode():
            replayed = forward.graphs.run(batch, shape)
            packed = Packed.view(pack(batch, shape, pinned=True).to("cuda"), shape)
            torch.testing.assert_close(replayed, forward._pass(packed)[: len(lengths)], rtol=0, atol=0)


@pytest.mark.cuda
@needs_cuda
def test_queued_batches_do_not_mix(on_gpu: tuple[Pair, CUDAForward]) -> None:
    """Many batches of all sizes that are queued before the first result is read give the results of each alone."""
    wide, forward = on_gpu
    generator = np.random.default_rng(0)
    batches = [
        micro_batch(
            random_texts(
                generator.integers(1, 300, generator.integers(1, 40)).tolist(), wide.checkpoint.body.vocab_size, n
            )
        )
        for n in range(60)
    ]
    queued = [forward.logits(batch) for batch in batches]
    for batch, logits in zip(batches, queued, strict=True):
        torch.cuda.synchronize()
        torch.testing.assert_close(logits, forward.logits(batch), rtol=0, atol=0)


@pytest.mark.cuda
@needs_cuda
def test_a_label_is_the_same_in_any_batch(on_gpu: tuple[Pair, CUDAForward]) -> None:
    """Alone and in any batch a text's logits are near, and its label is the same unless two labels are as near."""
    wide, forward = on_gpu
    generator = np.random.default_rng(0)
    texts = random_texts(generator.integers(1, 400, 200).tolist(), wide.checkpoint.body.vocab_size)
    alone = np.concatenate([wide.logits(forward, [text]) for text in texts])
    best = np.sort(alone, axis=1)
    decided = best[:, -1] - best[:, -2] > 2 * MAX_BF16 * alone.std()
    assert decided.mean() > 0.5
    for _ in range(20):
        chosen = generator.permutation(200)[: generator.integers(2, 80)]
        together = wide.logits(forward, [texts[i] for i in chosen])
        assert_near(together, alone[chosen], alone.std())
        same = together.argmax(axis=1) == alone[chosen].argmax(axis=1)
        assert same[decided[chosen]].all()
