"""What that_nlp_library's callers rely on besides logits and losses: arguments, return types, attributes, padding."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from polyhead.heads import ConcatHeadSimple
from polyhead_training.model.modeling import (
    GPT2BaseForSequenceClassification,
    GPT2HiddenStateConcatForSequenceClassification,
)
from tests.training.test_modeling import ARCHITECTURES, END, batch, build, config


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_forward_takes_the_seeds_arguments_in_its_order(model_class: Any) -> None:
    """Those of GPT2ForSequenceClassification, which the seed's forward repeats; ours come after them."""
    names = (
        "input_ids past_key_values attention_mask token_type_ids position_ids head_mask inputs_embeds labels use_cache"
    )
    names += " output_attentions output_hidden_states return_dict"
    parameters = inspect.signature(model_class.forward).parameters
    assert list(parameters)[1:] == [*names.split(), "lengths", "pooling", "num_items_in_batch"]
    assert all(parameter.default is None for parameter in list(parameters.values())[1:])
    model, (ids, mask) = build(model_class, [4]), batch()
    assert torch.equal(model(ids, None, mask).logits, model(ids, attention_mask=mask).logits)


def test_all_hidden_states_and_the_embeddings_can_be_concatenated() -> None:
    """`layer2concat` of n_layer + 1 ends with wte + wpe, padded and packed alike."""
    model = build(GPT2HiddenStateConcatForSequenceClassification, [2], layer2concat=4)
    ids, mask = batch()
    hidden = model.body_model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    last = [4, 8, 0]  # of texts of 5, 9 and 1 tokens
    pooled = torch.cat([state[range(3), last] for state in hidden[::-1]], dim=-1)
    embeddings = model.body_model.wte(ids[range(3), last]) + model.body_model.wpe(torch.tensor(last))
    torch.testing.assert_close(pooled[:, -16:], embeddings)
    expected = pooled @ model.head.out_proj.weight.T + model.head.out_proj.bias
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected, atol=1e-6, rtol=0)
    packed = model(ids[mask == 1], lengths=torch.tensor([5, 9, 1])).logits
    torch.testing.assert_close(packed, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_right_padded_ids_need_no_mask(model_class: Any) -> None:
    """The last real token is the last one that is not the pad id, even if a text holds that id in its middle."""
    model = build(model_class, [4])
    ids, mask = batch()
    ids[0, 2] = END  # the seed would read the token before this one
    torch.testing.assert_close(model(ids).logits, model(ids, attention_mask=mask).logits, atol=1e-6, rtol=0)
    alone = torch.cat([model(row[None]).logits for row in ids])
    torch.testing.assert_close(alone, model(ids).logits, atol=1e-5, rtol=0)
    ended = torch.tensor([[3, 7, END]])  # with a mask, a pad id at the end is a token like any other
    assert not torch.allclose(model(ended).logits, model(ended, attention_mask=torch.ones_like(ended)).logits)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_another_pad_id_may_be_named(model_class: Any) -> None:
    """The one in the model's config counts when the model is called."""
    model = build(model_class, [4])
    ids, mask = batch()
    model.config.pad_token_id = 48
    ids = ids.masked_fill(ids == 48, 47).masked_fill(mask == 0, 48)
    torch.testing.assert_close(model(ids).logits, model(ids, attention_mask=mask).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.bfloat16])
def test_a_mask_may_have_any_type(model_class: Any, dtype: torch.dtype) -> None:
    """0 and not 0, also padded on the left."""
    model, (ids, mask) = build(model_class, [4]), batch()
    left, left_mask = ids.flip(-1), mask.flip(-1)
    for given, wanted in ((ids, mask), (left, left_mask)):
        expected = model(given, attention_mask=wanted).logits
        assert torch.equal(model(given, attention_mask=wanted.to(dtype)).logits, expected)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_tuples_are_returned_on_request(model_class: Any) -> None:
    """`return_dict = False`, as an argument or in the config: (loss), logits, hidden states, attentions."""
    model, (ids, mask) = build(model_class, [4]), batch()
    out = model(ids, attention_mask=mask, labels=torch.tensor([0, 1, 2]))
    (logits,) = model(ids, attention_mask=mask, return_dict=False)
    assert torch.equal(logits, out.logits)
    loss, logits = model(ids, attention_mask=mask, labels=torch.tensor([0, 1, 2]), return_dict=False)
    assert torch.equal(loss, out.loss)
    assert torch.equal(logits, out.logits)
    packed = model(ids[mask == 1], lengths=torch.tensor([5, 9, 1]), return_dict=False)
    assert isinstance(packed, tuple)
    model.config.return_dict = False
    found = model(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    assert [len(part) for part in found] == [3, 4, 3]  # rows of logits, states, layers
    assert model(ids, return_dict=True).logits.shape == (3, 4)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_attentions_are_those_of_gpt2(model_class: Any) -> None:
    """One (n, heads, length, length) per layer, whose rows sum to one; logits stay the same."""
    model, (ids, mask) = build(model_class, [4]), batch()
    plain = model(ids, attention_mask=mask)
    assert plain.attentions is None
    assert plain.hidden_states is None
    before = model.body_model.config._attn_implementation
    out = model(ids, attention_mask=mask, output_attentions=True)
    assert [tuple(layer.shape) for layer in out.attentions] == [(3, 2, 9, 9)] * 3
    torch.testing.assert_close(out.attentions[0][0, :, :5].sum(-1), torch.ones(2, 5))
    assert out.attentions[0][0, 0, 0, 1:].abs().max() == 0  # a token sees only itself and earlier ones
    torch.testing.assert_close(out.logits, plain.logits, atol=1e-6, rtol=0)
    assert model.body_model.config._attn_implementation == before
    expected = GPT2Model(GPT2Config(**model.config.to_dict(), attn_implementation="eager")).eval()
    expected.load_state_dict(model.body_model.state_dict())
    places = mask.cumsum(-1) - 1
    wanted = expected(ids, attention_mask=mask, position_ids=places, output_attentions=True).attentions
    torch.testing.assert_close(out.attentions, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_attributes_are_the_seeds(model_class: Any) -> None:
    """What its trainer and its predictions read from the model, as lists also if one number was given."""
    model = build(model_class, [4, 2], is_multihead=True, head_weights=[1, 0.5])
    assert (model.is_multilabel, model.is_multihead) == (False, True)
    assert (model.head_class_sizes, model.head_weights) == ([4, 2], [1, 0.5])
    assert (model.num_labels, model.config.num_labels, model.config.pad_token_id) == (6, 6, END)
    single: Any = build(model_class, 3, is_multilabel=True)  # type: ignore[arg-type]
    assert (single.is_multilabel, single.is_multihead) == (True, False)
    assert (single.head_class_sizes, single.head_weights) == ([3], [1.0])
    several: Any = build(model_class, np.array([4, 2]), is_multihead=True, head_weights=np.float64(2))  # type: ignore[arg-type]
    assert (several.head_class_sizes, several.head_weights) == ([4, 2], [2.0, 2.0])
    if model_class is GPT2HiddenStateConcatForSequenceClassification:
        assert model.layer2concat == 2


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_embeddings_and_earlier_tokens_are_taken(model_class: Any) -> None:
    """`inputs_embeds` instead of ids, and keys and values of a text's beginning, give the whole text's logits."""
    model, (ids, mask) = build(model_class, [4]), batch()
    expected = model(ids, attention_mask=mask).logits
    embedded = model(inputs_embeds=model.body_model.wte(ids), attention_mask=mask).logits
    torch.testing.assert_close(embedded, expected, atol=1e-6, rtol=0)
    whole = ids[1:2]  # nine tokens
    begun = model(whole[:, :4], use_cache=True)
    past = begun["past_key_values"]
    assert past.get_seq_length() == 4
    torch.testing.assert_close(model(whole[:, 4:], past_key_values=past).logits, expected[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_a_config_with_hidden_states_is_taken(model_class: Any) -> None:
    """The seed's users set `output_hidden_states` in the config; the output then has none, as in the seed."""
    model, (ids, mask) = build(model_class, [4]), batch()
    expected = model(ids, attention_mask=mask).logits
    model.config.output_hidden_states = True
    out = model(ids, attention_mask=mask)
    assert out.hidden_states is None
    assert torch.equal(out.logits, expected)
    assert len(model(ids, attention_mask=mask, output_hidden_states=True).hidden_states) == 4


@pytest.mark.parametrize("labels", [[0, 3, 1], [0.0, 3.0, 1.0]])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_class_indices_may_have_any_type_and_shape(labels: list[float], dtype: torch.dtype) -> None:
    """Whole or floating numbers, as (n,) or (n, 1): the loss of PyTorch's cross-entropy."""
    model, (ids, mask) = build(GPT2BaseForSequenceClassification, [4]), batch()
    out = model(ids, attention_mask=mask, labels=torch.tensor(labels, dtype=dtype))
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(out.logits, torch.tensor([0, 3, 1])))
    again = model(ids, attention_mask=mask, labels=torch.tensor(labels, dtype=dtype)[:, None])
    assert torch.equal(again.loss, out.loss)


def test_ignored_class_indices_do_not_count() -> None:
    """-100 takes a row out of a head's mean, as in PyTorch's cross-entropy; as a number it is a number."""
    model, (ids, mask) = build(GPT2BaseForSequenceClassification, [4, 1], is_multihead=True), batch()
    labels = torch.tensor([[0.0, -100.0], [-100.0, 1.0], [2.0, 0.0]])
    out = model(ids, attention_mask=mask, labels=labels)
    expected = nn.functional.cross_entropy(out.logits[:, :4], labels[:, 0].long())
    expected = expected + nn.functional.mse_loss(out.logits[:, 4], labels[:, 1])
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_from_pretrained_takes_the_body_of_a_language_model(model_class: Any, tmp_path: Path) -> None:
    """Of a plain GPT-2 (``h.*``) and of a language model (``transformer.*``); only the head is new."""
    torch.manual_seed(5)
    lm = GPT2LMHeadModel(config())
    lm.save_pretrained(tmp_path / "lm")
    lm.transformer.save_pretrained(tmp_path / "plain")
    arguments: dict[str, Any] = {"head_class_sizes": [2]}
    if model_class is GPT2HiddenStateConcatForSequenceClassification:
        arguments |= {"layer2concat": 2, "head_class": ConcatHeadSimple}
    for name in ("lm", "plain"):
        model = model_class.from_pretrained(tmp_path / name, **arguments)
        for key, tensor in lm.transformer.state_dict().items():
            assert torch.equal(model.body_model.state_dict()[key], tensor), (name, key)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_what_cannot_be_computed_is_refused(model_class: Any) -> None:
    """Instead of being left out silently."""
    model, (ids, mask) = build(model_class, [4]), batch()
    with pytest.raises(ValueError, match="head_mask"):
        model(ids, head_mask=torch.ones(3, 2))
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match=r"shape \(n, length\), got \(3, 1, 9, 9\)"):
        model(ids, attention_mask=torch.ones(3, 1, 9, 9))
    with pytest.raises(ValueError, match="packed batch"):
        model(ids[mask == 1], lengths=torch.tensor([5, 9, 1]), attention_mask=mask)
    with pytest.raises(TypeError, match="attention_masks"):
        model(ids, attention_masks=mask)
