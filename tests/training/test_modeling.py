"""that_nlp_library's two classes: the same keys, logits and losses, without its defects."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

from polyhead.heads import ConcatHeadExtended, ConcatHeadSimple
from polyhead_training.model.modeling import (
    GPT2BaseForSequenceClassification,
    GPT2HiddenStateConcatForSequenceClassification,
)

ARCHITECTURES = [GPT2BaseForSequenceClassification, GPT2HiddenStateConcatForSequenceClassification]
END = 49


def config(**fields: Any) -> GPT2Config:
    """Three layers, 16 channels, 50 tokens of which the last ends a text."""
    defaults = {"vocab_size": 50, "n_positions": 24, "n_embd": 16, "n_layer": 3, "n_head": 2}
    return GPT2Config(**(defaults | fields), bos_token_id=END, eos_token_id=END)


def build(model_class: Any, sizes: list[int], **arguments: Any) -> Any:
    """A model in eval mode with two concatenated states where it concatenates."""
    torch.manual_seed(0)
    if model_class is GPT2HiddenStateConcatForSequenceClassification:
        arguments = {"layer2concat": 2, "head_class": ConcatHeadSimple} | arguments
    return model_class(config(), head_class_sizes=sizes, **arguments).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and mask of texts of 5, 9 and 1 tokens."""
    torch.manual_seed(1)
    lengths = torch.tensor([5, 9, 1])
    mask = (torch.arange(9) < lengths[:, None]).long()
    return torch.randint(0, 49, (3, 9)) * mask + END * (1 - mask), mask


def test_the_constructors_are_the_seeds() -> None:
    """Argument names, order and defaults are those of the API page."""
    base = {"config": inspect.Parameter.empty, "is_multilabel": False, "is_multihead": False, "head_class_sizes": [],
            "head_weights": [], "head_class": None, "head_class_kwargs": inspect.Parameter.empty}  # fmt: skip
    concat = {"config": inspect.Parameter.empty, "layer2concat": 4} | base
    for model_class, expected in zip(ARCHITECTURES, (base, concat), strict=True):
        parameters = inspect.signature(model_class).parameters
        assert list(parameters) == list(expected)
        assert {name: parameter.default for name, parameter in parameters.items()} == expected


def test_base_loads_a_seed_state_dict_and_equals_plain_transformers() -> None:
    """body_model.* and head.* of a plain GPT2Model and linear layer give the logits that these two compute."""
    torch.manual_seed(3)
    body, head = GPT2Model(config()).eval(), nn.Linear(16, 7, bias=False)
    state = {f"body_model.{k}": v for k, v in body.state_dict().items()} | {"head.weight": head.weight}
    model = build(GPT2BaseForSequenceClassification, [3, 4], is_multihead=True)
    model.load_state_dict(state, strict=True)
    ids = torch.tensor([[3, END, 7, 1]])
    expected = head(body(ids).last_hidden_state[:, -1])
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-6, rtol=0)
    assert model.config.num_labels == 7


@pytest.mark.parametrize("head_class", [ConcatHeadSimple, ConcatHeadExtended])
def test_concat_loads_a_seed_state_dict_and_equals_plain_transformers(head_class: type[nn.Module]) -> None:
    """The head reads the last hidden states, topmost first and that one after ln_f, worked out layer by layer."""
    torch.manual_seed(3)
    body = GPT2Model(config()).eval()
    arguments = {"last_hidden_size": 12} if head_class is ConcatHeadExtended else {}
    model = build(GPT2HiddenStateConcatForSequenceClassification, [5], head_class=head_class, **arguments)
    head_state = {k: v for k, v in model.state_dict().items() if k.startswith("head.")}
    model.load_state_dict({f"body_model.{k}": v for k, v in body.state_dict().items()} | head_state, strict=True)
    ids = torch.tensor([[3, END, 7, 1]])
    raw = []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: raw.append(out if torch.is_tensor(out) else out[0]))
        for block in body.h
    ]
    top = body(ids).last_hidden_state[:, -1]
    for hook in hooks:
        hook.remove()
    pooled = torch.cat([top, raw[-2][:, -1]], dim=-1)
    weights = {k.removeprefix("head."): v for k, v in head_state.items()}
    if head_class is ConcatHeadSimple:
        assert weights.keys() == {"out_proj.weight", "out_proj.bias"}
        expected = pooled @ weights["out_proj.weight"].T + weights["out_proj.bias"]
    else:
        hidden = torch.tanh(pooled @ weights["pre_classifier.weight"].T + weights["pre_classifier.bias"])
        expected = hidden @ weights["out_proj.weight"].T + weights["out_proj.bias"]
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_padding_changes_nothing(model_class: Any) -> None:
    """Padded on the right, on the left, or alone: the same logits."""
    model = build(model_class, [4])
    ids, mask = batch()
    left = [torch.cat([row[keep == 0], row[keep == 1]]) for row, keep in zip(ids, mask, strict=True)]
    right_logits = model(ids, attention_mask=mask).logits
    left_logits = model(torch.stack(left), attention_mask=mask.flip(-1).sort(-1).values).logits
    alone = torch.cat([model(row[keep == 1][None]).logits for row, keep in zip(ids, mask, strict=True)])
    torch.testing.assert_close(right_logits, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(left_logits, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_losses_are_the_seeds(model_class: Any) -> None:
    """Single, multihead with weights, multilabel, regression and several multilabel heads: sums worked out by hand."""
    ids, mask = batch()
    cross_entropy, bce = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()

    model = build(model_class, [4])
    out = model(ids, attention_mask=mask, labels=torch.tensor([0, 3, 1]))
    torch.testing.assert_close(out.loss, cross_entropy(out.logits, torch.tensor([0, 3, 1])))

    model = build(model_class, [4, 1, 3], is_multihead=True, head_weights=[0.5, 2, 3])
    labels = torch.tensor([[0, 1.5, 2], [3, -1, 0], [1, 0, 1]])
    out = model(ids, attention_mask=mask, labels=labels)
    expected = 0.5 * cross_entropy(out.logits[:, :4], labels[:, 0].long())
    expected = expected + 2 * ((out.logits[:, 4] - labels[:, 1]) ** 2).mean()
    expected = expected + 3 * cross_entropy(out.logits[:, 5:], labels[:, 2].long())
    torch.testing.assert_close(out.loss, expected)

    model = build(model_class, [4], is_multilabel=True)
    labels = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0.0]])
    out = model(ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(out.loss, bce(out.logits, labels))

    model = build(model_class, [1])
    out = model(ids[:1], attention_mask=mask[:1], labels=torch.tensor([2.5]))
    torch.testing.assert_close(out.loss, (out.logits[0, 0] - 2.5) ** 2)

    model = build(model_class, [1, 3], is_multilabel=True, is_multihead=True, head_weights=[1, 2])
    out = model(ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(
        out.loss, bce(out.logits[:, :1], labels[:, :1]) + 2 * bce(out.logits[:, 1:], labels[:, 1:])
    )


def test_a_row_without_a_label_does_not_count_in_that_head() -> None:
    """NaN takes a row out of one head's mean and leaves it in the other's."""
    model = build(GPT2BaseForSequenceClassification, [4, 1], is_multihead=True)
    ids, mask = batch()
    out = model(
        ids, attention_mask=mask, labels=torch.tensor([[0, float("nan")], [float("nan"), 1], [2, float("nan")]])
    )
    expected = nn.functional.cross_entropy(out.logits[[0, 2], :4], torch.tensor([0, 2])) + (out.logits[1, 4] - 1) ** 2
    torch.testing.assert_close(out.loss, expected)


def test_wrong_arguments_are_named() -> None:
    """Weights that do not match the heads, labels that do not match, and more layers than there are."""
    with pytest.raises(ValueError, match=r"one per head \(2\), got 3"):
        build(GPT2BaseForSequenceClassification, [2, 2], is_multihead=True, head_weights=[1, 1, 1])
    model = build(GPT2BaseForSequenceClassification, [2, 2], is_multihead=True)
    with pytest.raises(ValueError, match="labels must have 2 columns"):
        model(batch()[0], labels=torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"n_layer \+ 1 \(4\), got 5"):
        GPT2HiddenStateConcatForSequenceClassification(config(), layer2concat=5, head_class_sizes=[2])


@pytest.mark.parametrize("model_class", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_each_head_kind_overfits_eight_rows(model_class: Any, kind: str) -> None:
    """Two hundred steps bring the loss on eight rows close to nothing."""
    torch.manual_seed(0)
    sizes = {"single_label": [4], "multi_label": [4], "regression": [1]}[kind]
    model = build(model_class, sizes, is_multilabel=kind == "multi_label").train()
    ids = torch.randint(0, 49, (8, 12))
    labels = {
        "single_label": torch.arange(8) % 4,
        "multi_label": (torch.rand(8, 4) > 0.5).float(),
        "regression": torch.linspace(-1, 1, 8),
    }[kind]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for _ in range(200):
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_from_pretrained_round_trip_is_exact(model_class: Any, tmp_path: Any) -> None:
    """save_pretrained, then from_pretrained with the same constructor arguments: the same logits bit for bit."""
    model = build(model_class, [3, 2], is_multihead=True)
    model.save_pretrained(tmp_path)
    arguments: dict[str, Any] = {"is_multihead": True, "head_class_sizes": [3, 2]}
    if model_class is GPT2HiddenStateConcatForSequenceClassification:
        arguments |= {"layer2concat": 2, "head_class": ConcatHeadSimple}
    again = model_class.from_pretrained(tmp_path, **arguments).eval()
    ids, mask = batch()
    assert torch.equal(again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("model_class", ARCHITECTURES)
def test_the_head_answers_in_float32_under_autocast(model_class: Any) -> None:
    """The body may run in bfloat16; logits and loss are float32 and no rounded bfloat16 numbers."""
    model, (ids, mask) = build(model_class, [3]), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, attention_mask=mask, labels=torch.tensor([0.0, 1, 2]))
    assert output.logits.dtype == output.loss.dtype == torch.float32
    assert not torch.equal(output.logits, output.logits.bfloat16().float())


def test_several_ends_of_text_are_fine() -> None:
    """A config may name several; the first one pads."""
    several = config()
    several.eos_token_id = [3, 4]
    assert GPT2BaseForSequenceClassification(several, head_class_sizes=[2]).config.pad_token_id == 3
