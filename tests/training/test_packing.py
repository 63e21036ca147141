"""Padding-free batches: logits, losses and gradients of the padded transformers model, on real tokens alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import GPT2Config, GPT2Model

from polyhead.heads import ConcatHeadSimple
from polyhead_training.model.modeling import (
    GPT2BaseForSequenceClassification,
    GPT2HiddenStateConcatForSequenceClassification,
)
from polyhead_training.model.packing import collate, fuse_steps

CLASSES = [GPT2BaseForSequenceClassification, GPT2HiddenStateConcatForSequenceClassification]


def build(model_class: Any, **fields: Any) -> Any:
    """Three layers, two heads of 3 and 1 logits, no dropout; weights wide enough that nothing is lost in rounding."""
    torch.manual_seed(0)
    defaults = {"vocab_size": 60, "n_positions": 24, "n_embd": 16, "n_layer": 3, "n_head": 2, "initializer_range": 0.2}
    config = GPT2Config(**(defaults | fields), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    arguments = {"is_multihead": True, "head_class_sizes": [3, 1]}
    if model_class is GPT2HiddenStateConcatForSequenceClassification:
        arguments |= {"layer2concat": 2, "head_class": ConcatHeadSimple, "classifier_dropout": 0.0}
    return model_class(config, **arguments).train()


def rows(lengths: list[int], seed: int = 1) -> list[dict[str, Any]]:
    """Random texts of these lengths, some without a label for one of the heads."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(0, 60, (length,), generator=generator).tolist(),
            "labels": [float("nan") if place % 3 == 2 else float(place % 3), place * 0.5],
        }
        for place, length in enumerate(lengths)
    ]


def padded(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same batch, padded on the right with token 7."""
    texts = batch["input_ids"].split(batch["lengths"].tolist())
    ids = nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=7)
    mask = (torch.arange(ids.shape[1]) < batch["lengths"][:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": batch["labels"]}


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
    """Output and gradients of one backward pass."""
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("fields", [{}, {"scale_attn_by_inverse_layer_idx": True}, {"n_layer": 2, "n_inner": 24}])
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=9))
@settings(max_examples=12, deadline=None)
def test_logits_loss_and_gradients_equal_the_padded_models(
    model_class: Any, fields: dict[str, Any], lengths: list[int]
) -> None:
    """Whatever the lengths: the packed batch gives what the padded one gives, in every weight's gradient."""
    model, batch = build(model_class, **fields), collate(rows(lengths))
    output, packed_gradients = gradients(model, batch)
    expected, padded_gradients = gradients(model, padded(batch))
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-4)
    assert packed_gradients.keys() == padded_gradients.keys()
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], atol=1e-5, rtol=1e-3, msg=name)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    """Activations computed again give the same gradients, bit for bit."""
    model, batch = build(GPT2BaseForSequenceClassification), collate(rows([5, 9, 9, 2]))
    _, expected = gradients(model, batch)
    model.activation_checkpointing_enable()
    assert all(block.gradient_checkpointing for block in model.body_model.h)
    _, again = gradients(model, batch)
    assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())


def test_adapters_on_the_bodys_layers_are_used() -> None:
    """LoRA layers put on the body take part in the packed forward as in the padded one."""
    model, batch = build(GPT2BaseForSequenceClassification), collate(rows([5, 9, 2]))
    plain = model(**batch).logits
    lora = LoraConfig(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, init_lora_weights=False)
    inject_adapter_in_model(lora, model.body_model)
    adapted = model(**batch).logits
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(adapted, model(**padded(batch)).logits, atol=1e-5, rtol=1e-4)


def test_dropout_works_on_every_part() -> None:
    """Each of the three dropouts changes the packed logits in training and none does in evaluation."""
    batch = collate(rows([5, 9, 9, 2]))
    model = build(GPT2BaseForSequenceClassification)
    still = model(**batch).logits
    parts = {
        "embd": [model.body_model.drop],
        "attn": [block.attn.attn_dropout for block in model.body_model.h],
        "resid": [drop for block in model.body_model.h for drop in (block.attn.resid_dropout, block.mlp.dropout)],
    }
    for modules in parts.values():
        for module in modules:
            module.p = 0.5
        assert not torch.allclose(model(**batch).logits, still)
        for module in modules:
            module.p = 0.0
    for module in (module for modules in parts.values() for module in modules):
        module.p = 0.5
    assert torch.equal(model.eval()(**batch).logits, still)


def test_the_fused_gelu_is_transformers_gelu() -> None:
    """The body with torch's kernel gives the unchanged body's hidden states."""
    torch.manual_seed(0)
    body = GPT2Model(GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)).eval()
    ids = torch.randint(0, 60, (2, 7))
    expected = body(ids).last_hidden_state
    fuse_steps(body)
    assert isinstance(body.h[0].mlp.act, nn.GELU)
    torch.testing.assert_close(body(ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_a_batch_is_sorted_and_holds_no_padding() -> None:
    """As many ids as tokens, longest text first, each with its own labels."""
    batch = collate(rows([2, 5, 3]))
    assert batch["lengths"].tolist() == [5, 3, 2]
    assert len(batch["input_ids"]) == 10
    assert batch["labels"][:, 1].tolist() == [0.5, 1.0, 0.0]
    assert next(iter(batch)) == "lengths"
