"""The engine answers as transformers does, whatever other texts are in the batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Model

from polyhead.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from polyhead.decode import to_scores
from polyhead.engine import Engine
from polyhead.engine.cpu.kernels import KERNELS
from polyhead.engine.cpu.layers import LINEARS, OneDNNBfloat16Linear, has_stable_products
from polyhead.errors import CheckpointError, TokenIdsError
from polyhead.gate import changed_answers
from polyhead.golden import GoldenRow
from polyhead.precision import PRECISIONS, Precision
from polyhead.predictor import Predictor
from polyhead.schema import Schema
from tests.tiny import MAX_LENGTH, SCHEMA, TEXTS, tiny_config, tiny_spec, tiny_tokenizer, write_tiny_checkpoint

ONE_OUTPUT = Schema([head for head in SCHEMA if head.kind == "regression"])  # its head is a product by a vector
HEADS: list[tuple[str, str | None, dict[str, Any]]] = [
    ("base", None, {}),
    ("base", "ConcatHeadSimple", {"layer2concat": 1}),
    ("base", "tests.custom_head:TwoLayerHead", {"width": 16}),
    ("hidden_state_concat", "ConcatHeadSimple", {}),
    ("hidden_state_concat", "ConcatHeadExtended", {"last_hidden_size": 24, "classifier_dropout": 0.3}),
    ("hidden_state_concat", "tests.custom_head:TwoLayerHead", {"width": 16}),
]


@pytest.fixture(scope="module", params=HEADS, ids=lambda param: f"{param[0]}-{param[1]}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, Any]:
    """A predictor, and the transformers model from which its checkpoint was made."""
    architecture, head_class, head_args = request.param
    path = tmp_path_factory.mktemp("pair") / "checkpoint"
    model = write_tiny_checkpoint(path, architecture, head_class=head_class, head_args=head_args)
    return Predictor.load(path), model


def reference_logits(model: Any, token_ids: list[int]) -> np.ndarray:
    """Logits by transformers for one text alone, without padding."""
    with torch.inference_mode():
        ids = torch.tensor([token_ids])
        return model(ids, attention_mask=torch.ones_like(ids)).logits[0].numpy()  # the last id may be that of padding


def test_single_texts_equal_transformers(pair: tuple[Predictor, Any]) -> None:
    """A text alone gets transformers' logits within 1e-5, also with literal <|endoftext|> or if it is truncated."""
    predictor, model = pair
    for text in predictor.encode(TEXTS):
        logits = predictor._engine.logits([text.token_ids])[0]
        np.testing.assert_allclose(logits, reference_logits(model, list(text.token_ids)), atol=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_batch_equals_transformers(pair: tuple[Predictor, Any], data: st.DataObject) -> None:
    """In any batch, order and mix of lengths, each text gets the logits that transformers computes for it alone."""
    predictor, model = pair
    vocab = predictor.checkpoint.body.vocab_size
    sequence = st.lists(st.integers(0, vocab - 1), min_size=1, max_size=MAX_LENGTH)
    batch = data.draw(st.lists(sequence, min_size=1, max_size=12))
    logits = predictor._engine.logits(batch)
    expected = np.stack([reference_logits(model, ids) for ids in batch])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.fixture(scope="module", params=[SCHEMA, ONE_OUTPUT], ids=["three-heads", "one-output"])
def wide_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint whose attention heads are 64 wide, as GPT-2's are, so that the engine's own kernels compute them."""
    path = tmp_path_factory.mktemp("wide") / "checkpoint"
    write_tiny_checkpoint(path, "hidden_state_concat", request.param, n_embd=128, n_head=2, n_inner=500)
    return read_checkpoint(path)


@pytest.fixture(scope="module", params=PRECISIONS)
def wide_engine(request: pytest.FixtureRequest, wide_checkpoint: Checkpoint) -> Engine:
    """An engine with two threads."""
    return two_threaded(wide_checkpoint, request.param)


def two_threaded(checkpoint: Checkpoint, precision: Precision) -> Engine:
    """An engine with two threads, although tests use one."""
    torch.set_num_threads(2)
    engine = Engine(checkpoint, precision=precision)
    torch.set_num_threads(1)
    return engine


def alone_and_together(engine: Engine, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of texts of these lengths, each computed alone, and all in one batch; by two threads."""
    batch = [[(7 * row + place) % 60 for place in range(length)] for row, length in enumerate(lengths)]
    torch.set_num_threads(2)
    together = engine.logits(batch)
    alone = np.concatenate([engine.logits([ids]) for ids in batch])
    torch.set_num_threads(1)
    return alone, together


def rounding(engine: Engine) -> float:
    """How far a text's logits may differ between batches if their bits do.

    In bf16 each layer rounds again. If products depend on the number of rows, as on AMX, logits of these random models,
    whose standard deviation is 2 to 4, differ by up to 0.04 with `UnstableLinear`.
    """
    bf16 = 0.02 if has_stable_products("bf16", engine.body) else 0.15
    return {"fp32": 1e-5, "bf16": bf16, "int8": 0.02}[engine.precision]


def assert_same_answers(alone: np.ndarray, together: np.ndarray, schema: Schema, atol: float) -> None:
    """Logits differ by rounding at most, so no answer changes that is further from its boundary."""
    np.testing.assert_allclose(alone, together, atol=atol)
    assert not changed_answers(to_scores(together, schema), to_scores(alone, schema), schema, atol).any()


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, MAX_LENGTH), min_size=2, max_size=40))
def test_a_text_alone_has_the_same_bits_in_any_batch(
    wide_engine: Engine, wide_checkpoint: Checkpoint, lengths: list[int]
) -> None:
    """Where the engine says so, no other text changes one bit of a text's logits; elsewhere answers are the same."""
    alone, together = alone_and_together(wide_engine, lengths)
    if wide_engine.is_batch_invariant:
        np.testing.assert_array_equal(alone, together)
    assert_same_answers(alone, together, wide_checkpoint.schema, rounding(wide_engine))


class UnstableLinear(OneDNNBfloat16Linear):
    """Sums in another order for few rows, as oneDNN's product does on AMX; runs on any CPU."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__(weight, bias)
        self.plain = weight.bfloat16().float()

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """``(rows, out)`` bfloat16."""
        if len(x) >= 64:
            return super().__call__(x, out)
        result = torch.addmm(self.bias.float(), x.float(), self.plain).bfloat16()
        return result if out is None else out.copy_(result)


def test_answers_are_the_same_although_bits_differ(
    wide_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If products depend on the number of rows, as on AMX, logits differ by rounding and clear answers stay."""
    monkeypatch.setitem(LINEARS, "bf16", UnstableLinear)
    monkeypatch.setattr("polyhead.engine.cpu.layers.multiplies_short_values", lambda inner: False)
    engine = two_threaded(wide_checkpoint, "bf16")
    assert not engine.is_batch_invariant
    alone, together = alone_and_together(engine, [*range(1, MAX_LENGTH), 3, 7])
    assert (alone != together).any()
    assert_same_answers(alone, together, wide_checkpoint.schema, rounding(engine))


@pytest.mark.skipif(KERNELS is None, reason="without the kernels nothing is claimed")
@pytest.mark.parametrize("is_short", [False, True])
def test_where_bits_are_claimed_to_be_the_same(
    wide_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    """fp32 and int8 with the kernels, bf16 if its products are the engine's own; nothing without the kernels."""
    monkeypatch.setattr("polyhead.engine.cpu.layers.amx_for", lambda body: None)
    monkeypatch.setattr("polyhead.engine.cpu.layers.multiplies_short_values", lambda inner: is_short)
    body = wide_checkpoint.body
    assert {precision for precision in PRECISIONS if has_stable_products(precision, body)} == (
        {"fp32", "int8", "bf16"} if is_short else {"fp32", "int8"}
    )
    monkeypatch.setattr("polyhead.engine.cpu.layers.PRODUCTS", None)
    assert not any(has_stable_products(precision, body) for precision in PRECISIONS)
    assert not Engine(wide_checkpoint).is_batch_invariant


def test_nothing_is_claimed_for_a_head_of_another_class(tmp_path: Path) -> None:
    """Its operations decide."""
    write_tiny_checkpoint(
        tmp_path, "base", head_class="tests.custom_head:TwoLayerHead", head_args={"width": 16}, n_embd=128, n_head=2
    )
    assert not Engine(read_checkpoint(tmp_path)).is_batch_invariant


def test_micro_batches_change_nothing(pair: tuple[Predictor, Any]) -> None:
    """A token budget smaller than the batch, and even smaller than one text, gives the same logits."""
    predictor, _ = pair
    ids = [text.token_ids for text in predictor.encode(TEXTS * 3)]
    small = Engine(predictor.checkpoint, token_budget=20)
    np.testing.assert_allclose(small.logits(ids), predictor._engine.logits(ids), atol=1e-5)


def test_equal_texts_are_computed_once(pair: tuple[Predictor, Any]) -> None:
    """Three equal texts use the token budget of one, and each gets its answer."""
    predictor, _ = pair
    one, other = (predictor.encode(TEXTS)[row].token_ids[:8] for row in (0, 1))
    engine = Engine(predictor.checkpoint, token_budget=8)
    pooled, computed = engine.forward.pooled, []
    engine.forward.pooled = lambda batch: computed.append(batch.tokens) or pooled(batch)
    engine.logits([one, other, one, one])
    assert computed == [8, 8]
    np.testing.assert_array_equal(engine.logits([one, other, one])[[0, 2]], np.repeat(engine.logits([one]), 2, axis=0))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "text 1 has 0 tokens; it must have 1 to 48"),
        ([1] * 49, "text 1 has 49 tokens; it must have 1 to 48"),
        ([1, -1], "text 1 has token id -1; ids must lie in 0 to"),
        ([1, 10**6], "text 1 has token id 1000000; ids must lie in 0 to"),
        ([1, 10**30], "text 1: token ids must be whole numbers"),
        ([1.5], "text 1: token ids must be whole numbers"),
        (["a"], "text 1: token ids must be whole numbers"),
        ([[1]], "text 1: token ids must be whole numbers"),
    ],
)
def test_wrong_token_ids_are_refused(base_checkpoint: Path, ids: Any, message: str) -> None:
    """Token ids that the model cannot read are an error that names the text; nothing is computed."""
    engine = Engine(read_checkpoint(base_checkpoint))
    with pytest.raises(TokenIdsError, match=message):
        engine.logits([[1, 2], ids])


def test_threads_take_turns(base_checkpoint: Path) -> None:
    """Several threads that share an engine get the same answers as one thread."""
    predictor = Predictor.load(base_checkpoint)
    ids = [text.token_ids for text in predictor.encode(TEXTS)]
    alone = [predictor._engine.logits([one])[0] for one in ids]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: predictor._engine.logits([one])[0], ids * 20))
    np.testing.assert_allclose(together, alone * 20, atol=1e-6)


def test_an_empty_batch(pair: tuple[Predictor, Any]) -> None:
    """An empty batch has logits of the right width and no rows."""
    predictor, _ = pair
    assert predictor._engine.logits([]).shape == (0, predictor.schema.width)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("concat", [False, True])
def test_lower_precisions_stay_near(tmp_path: Path, precision: str, concat: bool) -> None:
    """Logits in bf16 and int8 are near those of float32, but not equal."""
    write_tiny_checkpoint(tmp_path / "c", "hidden_state_concat" if concat else "base")
    checkpoint = read_checkpoint(tmp_path / "c")
    ids = [text.token_ids for text in Predictor(checkpoint).encode(TEXTS)]
    exact = Engine(checkpoint).logits(ids)
    rounded = Engine(checkpoint, precision=precision).logits(ids)
    assert 1e-5 < np.abs(rounded - exact).max() < 0.1 * exact.std()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_label_is_the_same_in_any_batch(base_checkpoint: Path, precision: Precision, data: st.DataObject) -> None:
    """Alone and in any batch a text gets the same label, unless two labels are nearer to each other than rounding.

    This checkpoint's heads are not 64 wide, so PyTorch computes attention and bits may differ on every machine.
    """
    checkpoint = read_checkpoint(base_checkpoint)
    engine = Engine(checkpoint, precision=precision)
    assert not engine.is_batch_invariant
    sequence = st.lists(st.integers(0, checkpoint.body.vocab_size - 1), min_size=1, max_size=MAX_LENGTH)
    batch = data.draw(st.lists(sequence, min_size=1, max_size=12))
    alone = np.concatenate([engine.logits([ids]) for ids in batch])
    assert_same_answers(alone, engine.logits(batch), checkpoint.schema, rounding(engine))


@pytest.mark.parametrize(
    "fields",
    [
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
        {"activation_function": "silu"},
        {"n_inner": 40},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"layer_norm_epsilon": 1e-3},
        {"n_layer": 2, "n_head": 1},
    ],
)
def test_config_variants_equal_transformers(tmp_path: Path, fields: dict[str, Any]) -> None:
    """The engine honours every GPT-2 config field that changes the computation."""
    model = write_tiny_checkpoint(tmp_path / "c", **fields)
    predictor = Predictor.load(tmp_path / "c")
    ids = [list(text.token_ids) for text in predictor.encode(TEXTS)]
    expected = np.stack([reference_logits(model, row) for row in ids])
    np.testing.assert_allclose(predictor._engine.logits(ids), expected, atol=1e-5)


def test_unknown_activation_is_refused(tmp_path: Path) -> None:
    """An activation that the engine does not know is an error that names it and what is allowed."""
    write_tiny_checkpoint(tmp_path / "c", activation_function="mish")
    with pytest.raises(CheckpointError, match=r"activation_function must be one of .*gelu_new.* got 'mish'"):
        Engine(read_checkpoint(tmp_path / "c"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu(base_checkpoint: Path) -> None:
    """On a GPU the engine's logits equal those of the CPU within 1e-4."""
    checkpoint = read_checkpoint(base_checkpoint)
    ids = [text.token_ids for text in Predictor(checkpoint).encode(TEXTS)]
    on_cpu, on_cuda = Engine(checkpoint).logits(ids), Engine(checkpoint, "cuda").logits(ids)
    np.testing.assert_allclose(on_cuda, on_cpu, atol=1e-4)


def test_a_state_dict_of_that_nlp_library_is_served(tmp_path: Path) -> None:
    """The engine gives the logits of a GPT2Model and a linear head, stored under that_nlp_library's key names."""
    torch.manual_seed(5)
    body = GPT2Model(tiny_config()).eval()
    head = torch.nn.Linear(32, SCHEMA.width, bias=False)
    tensors = {f"body_model.{name}": tensor for name, tensor in body.state_dict().items()}
    write_checkpoint(
        tmp_path / "c",
        config=body.config.to_dict(),
        spec=tiny_spec(),
        schema=SCHEMA,
        # Older versions of transformers saved the causal masks too.
        tensors=tensors | {"head.weight": head.weight, "body_model.h.0.attn.bias": torch.ones(1, 1, 48, 48)},
        tokenizer_json=tiny_tokenizer().to_str(),
        golden=[GoldenRow(text="x", scores=(0.0,) * SCHEMA.width, token_count=1, truncated=False)],
        metrics={},
    )
    predictor = Predictor(read_checkpoint(tmp_path / "c"))
    for text in predictor.encode(TEXTS):
        with torch.inference_mode():
            expected = head(body(torch.tensor([list(text.token_ids)])).last_hidden_state[0, -1]).numpy()
        np.testing.assert_allclose(predictor._engine.logits([text.token_ids])[0], expected, atol=1e-5)
