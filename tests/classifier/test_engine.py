"""The engine answers as transformers does, whatever stands beside a text in its batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Model

from polyhead.checkpoint import Golden, read_checkpoint, write_checkpoint
from polyhead.engine import Engine
from polyhead.engine.cpu.kernels import KERNELS
from polyhead.errors import CheckpointError, InputError
from polyhead.predictor import Predictor
from polyhead.schema import Schema
from tests.tiny import MAX_LENGTH, SCHEMA, TEXTS, tiny_config, tiny_spec, tiny_tokenizer, write_tiny_checkpoint

ONE_OUTPUT = Schema([head for head in SCHEMA if head.kind == "regression"])  # its product is one by a vector
ROUNDING = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.02}  # of logits: kernels differ with the number of rows

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
    """A predictor and the transformers model that its checkpoint was made from."""
    architecture, head_class, head_args = request.param
    path = tmp_path_factory.mktemp("pair") / "checkpoint"
    model = write_tiny_checkpoint(path, architecture, head_class=head_class, head_args=head_args)
    return Predictor.load(path), model


def reference_logits(model: Any, token_ids: list[int]) -> np.ndarray:
    """What transformers computes for one text alone, without padding."""
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def test_single_texts_equal_transformers(pair: tuple[Predictor, Any]) -> None:
    """A text alone gets transformers' logits within 1e-5: literal end-of-text tokens and truncated texts included."""
    predictor, model = pair
    for text in predictor.encode(TEXTS):
        logits = predictor._engine.logits([text.token_ids])[0]
        np.testing.assert_allclose(logits, reference_logits(model, list(text.token_ids)), atol=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_batch_equals_transformers(pair: tuple[Predictor, Any], data: st.DataObject) -> None:
    """In any batch, order and mix of lengths each text gets the logits it has alone in transformers."""
    predictor, model = pair
    vocab = predictor.checkpoint.body.vocab_size
    sequence = st.lists(st.integers(0, vocab - 1), min_size=1, max_size=MAX_LENGTH)
    batch = data.draw(st.lists(sequence, min_size=1, max_size=12))
    logits = predictor._engine.logits(batch)
    expected = np.stack([reference_logits(model, ids) for ids in batch])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.fixture(
    scope="module",
    params=product(["fp32", "bf16", "int8"], [SCHEMA, ONE_OUTPUT]),
    ids=["fp32", "fp32-one", "bf16", "bf16-one", "int8", "int8-one"],
)
def wide_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine whose heads are 64 wide, as GPT-2's are; it works with two threads."""
    precision, schema = request.param
    path = tmp_path_factory.mktemp("wide") / "checkpoint"
    write_tiny_checkpoint(path, "hidden_state_concat", schema, n_embd=128, n_head=2, n_inner=500)
    torch.set_num_threads(2)
    engine = Engine(read_checkpoint(path), precision=precision)
    torch.set_num_threads(1)
    return engine


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_text_alone_has_the_same_bits_in_any_batch(wide_engine: Engine, data: st.DataObject) -> None:
    """No neighbour changes one bit of a text's logits, at any precision, so no label either.

    AMX has not been tried; without the kernels PyTorch's attention pads, so there only rounding is promised.
    """
    lengths = data.draw(st.lists(st.integers(1, MAX_LENGTH), min_size=2, max_size=40))
    batch = [[(7 * row + place) % 60 for place in range(length)] for row, length in enumerate(lengths)]
    torch.set_num_threads(2)
    together = wide_engine.logits(batch)
    alone = np.concatenate([wide_engine.logits([ids]) for ids in batch])
    torch.set_num_threads(1)
    if KERNELS and not torch.cpu._is_amx_tile_supported():
        np.testing.assert_array_equal(alone, together)
    np.testing.assert_allclose(alone, together, atol=ROUNDING[wide_engine.precision])


def test_micro_batches_change_nothing(pair: tuple[Predictor, Any]) -> None:
    """A token budget smaller than the batch, and even than one text, gives the same logits."""
    predictor, _ = pair
    ids = [text.token_ids for text in predictor.encode(TEXTS * 3)]
    small = Engine(predictor.checkpoint, token_budget=20)
    np.testing.assert_allclose(small.logits(ids), predictor._engine.logits(ids), atol=1e-5)


def test_equal_texts_are_computed_once(pair: tuple[Predictor, Any]) -> None:
    """Three equal texts take the room of one, and each gets its answer."""
    predictor, _ = pair
    one, other = (predictor.encode(TEXTS)[row].token_ids[:8] for row in (0, 1))
    engine = Engine(predictor.checkpoint, token_budget=8)
    assert engine.plan([one, other, one, one]) == [[0, 2, 3], [1]]
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
def test_what_is_no_text_is_refused(base_checkpoint: Path, ids: Any, message: str) -> None:
    """Token ids that the model cannot read are an error that names the text, before anything is computed."""
    engine = Engine(read_checkpoint(base_checkpoint))
    with pytest.raises(InputError, match=message):
        engine.logits([[1, 2], ids])


def test_threads_take_turns(base_checkpoint: Path) -> None:
    """Several threads on one engine get the answers that each would get alone."""
    predictor = Predictor.load(base_checkpoint)
    ids = [text.token_ids for text in predictor.encode(TEXTS)]
    alone = [predictor._engine.logits([one])[0] for one in ids]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: predictor._engine.logits([one])[0], ids * 20))
    np.testing.assert_allclose(together, alone * 20, atol=1e-6)


def test_no_texts_no_rows(pair: tuple[Predictor, Any]) -> None:
    """An empty batch has logits of the right width and no rows."""
    predictor, _ = pair
    assert predictor._engine.logits([]).shape == (0, predictor.schema.width)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("concat", [False, True])
def test_lower_precisions_stay_near(tmp_path: Path, precision: str, concat: bool) -> None:
    """bf16 and int8 round: their logits are near those of float32, and not the same."""
    write_tiny_checkpoint(tmp_path / "c", "hidden_state_concat" if concat else "base")
    checkpoint = read_checkpoint(tmp_path / "c")
    ids = [text.token_ids for text in Predictor(checkpoint).encode(TEXTS)]
    exact = Engine(checkpoint).logits(ids)
    rounded = Engine(checkpoint, precision=precision).logits(ids)
    assert 1e-5 < np.abs(rounded - exact).max() < 0.1 * exact.std()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_label_is_the_same_in_any_batch(base_checkpoint: Path, precision: str, data: st.DataObject) -> None:
    """Alone and in any batch a text gets the same label, unless two labels are as near as rounding."""
    checkpoint = read_checkpoint(base_checkpoint)
    engine = Engine(checkpoint, precision=precision)
    sequence = st.lists(st.integers(0, checkpoint.body.vocab_size - 1), min_size=1, max_size=MAX_LENGTH)
    batch = data.draw(st.lists(sequence, min_size=1, max_size=12))
    topics = engine.logits(batch)[:, checkpoint.schema.columns["topic"]]
    for ids, together in zip(batch, topics, strict=True):
        alone = engine.logits([ids])[0, checkpoint.schema.columns["topic"]]
        lead = np.sort(alone)[-1] - np.sort(alone)[-2]
        assert together.argmax() == alone.argmax() or lead < ROUNDING[precision]


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
    """Every GPT-2 config field that changes the computation is honoured."""
    model = write_tiny_checkpoint(tmp_path / "c", **fields)
    predictor = Predictor.load(tmp_path / "c")
    ids = [list(text.token_ids) for text in predictor.encode(TEXTS)]
    expected = np.stack([reference_logits(model, row) for row in ids])
    np.testing.assert_allclose(predictor._engine.logits(ids), expected, atol=1e-5)


def test_unknown_activation_is_refused(tmp_path: Path) -> None:
    """An activation that the engine lacks is an error that names it and what is allowed."""
    write_tiny_checkpoint(tmp_path / "c", activation_function="mish")
    with pytest.raises(CheckpointError, match=r"activation_function must be one of .*gelu_new.* got 'mish'"):
        Engine(read_checkpoint(tmp_path / "c"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu(base_checkpoint: Path) -> None:
    """On a GPU the engine's logits are those of the CPU within 1e-4."""
    checkpoint = read_checkpoint(base_checkpoint)
    ids = [text.token_ids for text in Predictor(checkpoint).encode(TEXTS)]
    on_cpu, on_cuda = Engine(checkpoint).logits(ids), Engine(checkpoint, "cuda").logits(ids)
    np.testing.assert_allclose(on_cuda, on_cpu, atol=1e-4)


def test_a_seed_state_dict_is_served(tmp_path: Path) -> None:
    """A plain GPT2Model and a linear head under the seed library's key names: the engine gives their logits."""
    torch.manual_seed(5)
    body = GPT2Model(tiny_config()).eval()
    head = torch.nn.Linear(32, SCHEMA.width, bias=False)
    tensors = {f"body_model.{name}": tensor for name, tensor in body.state_dict().items()}
    write_checkpoint(
        tmp_path / "c",
        config=body.config.to_dict(),
        spec=tiny_spec(),
        schema=SCHEMA,
        # Older transformers saved the causal masks too.
        tensors=tensors | {"head.weight": head.weight, "body_model.h.0.attn.bias": torch.ones(1, 1, 48, 48)},
        tokenizer_json=tiny_tokenizer().to_str(),
        golden=[Golden(text="x", scores=(0.0,) * SCHEMA.width, token_count=1, truncated=False)],
        metrics={},
    )
    predictor = Predictor.load(tmp_path / "c")
    for text in predictor.encode(TEXTS):
        with torch.inference_mode():
            expected = head(body(torch.tensor([list(text.token_ids)])).last_hidden_state[0, -1]).numpy()
        np.testing.assert_allclose(predictor._engine.logits([text.token_ids])[0], expected, atol=1e-5)
