"""The two model classes of that_nlp_library's GPT-2 module, with its signatures, logits, losses and state-dict keys.

Different on purpose: the last real token comes from the attention mask, so neither a literal ``<|endoftext|>`` in a
text nor the padding side changes a score; regression works at batch 1; multilabel together with multihead works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2Model, GPT2PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from polyhead.checkpoint import Spec
from polyhead.heads import head_class_named
from polyhead.schema import HeadKind, Schema


@dataclass(frozen=True)
class LossTerm:
    """One head's part of the loss: its kind, how many logits it has, and its weight."""

    kind: HeadKind
    width: int
    weight: float = 1.0

    @property
    def label_width(self) -> int:
        """How many columns of the label matrix belong to it."""
        return self.width if self.kind == "multi_label" else 1


def loss_terms(schema: Schema) -> list[LossTerm]:
    """The loss of a schema's heads."""
    return [LossTerm(head.kind, head.width, head.weight) for head in schema]


def seed_loss_terms(
    is_multilabel: bool, is_multihead: bool, head_class_sizes: Sequence[int], head_weights: Sequence[float]
) -> list[LossTerm]:
    """What the seed's constructor arguments mean: the one place where heads are modes."""
    if is_multilabel and not is_multihead:
        return [LossTerm("multi_label", sum(head_class_sizes))]
    kinds: list[HeadKind] = [
        "multi_label" if is_multilabel else "regression" if size == 1 else "single_label" for size in head_class_sizes
    ]
    return [LossTerm(*term) for term in zip(kinds, head_class_sizes, head_weights, strict=True)]


def label_counts(labels: torch.Tensor, terms: Sequence[LossTerm]) -> torch.Tensor:
    """What each head's summed loss is divided by to be a mean: ``(heads,)``, 0 where no row has its label."""
    counts, column = [], 0
    for term in terms:
        known = ~labels[:, column : column + term.label_width].isnan().any(dim=1)
        counts.append(known.sum() * term.label_width)
        column += term.label_width
    return torch.stack(counts).float()


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, terms: Sequence[LossTerm], counts: torch.Tensor | None = None
) -> torch.Tensor:
    """The weighted sum of the heads' mean losses: cross-entropy, binary cross-entropy with logits, squared error.

    Args:
        logits: ``(n, sum of widths)``.
        labels: ``(n, sum of label widths)`` or, for one column, ``(n,)``: a class index, a number, or 0/1 a label; NaN
            where a row has no label for that head, which then does not count in it.
        counts: ``(heads,)`` as from `label_counts`, of more rows than these; of these if not given.
    """
    labels = labels.reshape(len(logits), -1)
    expected = sum(term.label_width for term in terms)
    if labels.shape[1] != expected:
        raise ValueError(f"labels must have {expected} columns for these heads, got {labels.shape[1]}")
    counts = label_counts(labels, terms) if counts is None else counts
    total = logits.sum() * 0  # keeps the graph where no row has any label
    start = column = 0
    for term, count in zip(terms, counts, strict=True):
        head_logits = logits[:, start : start + term.width]  # (n, width)
        head_labels = labels[:, column : column + term.label_width]  # (n, label_width)
        known = ~head_labels.isnan().any(dim=1)
        if known.any():
            total = total + term.weight * _loss(term.kind, head_logits[known], head_labels[known]) / count
        start, column = start + term.width, column + term.label_width
    return total


def _loss(kind: HeadKind, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    match kind:
        case "single_label":
            return F.cross_entropy(logits, labels[:, 0].long(), reduction="sum")
        case "multi_label":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        case "regression":
            return F.mse_loss(logits[:, 0], labels[:, 0].to(logits.dtype), reduction="sum")


class _GPT2Classifier(GPT2PreTrainedModel):
    """What both architectures share: the body, the pooling at the last real token, head and loss."""

    config_class = GPT2Config
    base_model_prefix = "body_model"
    # Trainer must not take our forward's **kwargs for a loss that normalizes over several accumulated batches.
    accepts_loss_kwargs: ClassVar[bool] = False
    terms: list[LossTerm]

    def _build(
        self,
        is_multilabel: bool,
        is_multihead: bool,
        head_class_sizes: int | Sequence[int],
        head_weights: float | Sequence[float],
    ) -> None:
        sizes = [head_class_sizes] if isinstance(head_class_sizes, int) else list(head_class_sizes)
        weights = [head_weights] * len(sizes) if isinstance(head_weights, int | float) else list(head_weights)
        weights = weights or [1.0] * len(sizes)
        if len(weights) != len(sizes):
            raise ValueError(f"head_weights must be one a head ({len(sizes)}), got {len(weights)}")
        self.terms = seed_loss_terms(is_multilabel, is_multihead, sizes, weights)
        self.config.num_labels = sum(sizes)
        self.config.pad_token_id = self.config.eos_token_id
        self.body_model = GPT2Model(self.config)

    def _pool(self, hidden_states: Sequence[torch.Tensor], last: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError  # each architecture reads its own hidden states

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits ``(n, num_labels)`` and, with `labels` as in `classification_loss`, the loss.

        Args:
            input_ids: ``(n, length)``, padded on either side.
            attention_mask: ``(n, length)``, 1 for real tokens; without it, all are real.
            position_ids: if not given, counted from each text's first real token.
            num_items_in_batch: ``(heads,)``, the divisors of the heads' summed losses; this batch's if not given.
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None:
            raise ValueError("give input_ids or inputs_embeds")
        if attention_mask is None:
            attention_mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        kwargs |= {"output_hidden_states": True, "use_cache": False, "return_dict": True}
        hidden_states = self.body_model(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        ).hidden_states
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        last = (attention_mask * places).argmax(-1)  # (n,)
        logits = self.head(self._pool(hidden_states, last))  # (n, num_labels)
        loss = None if labels is None else classification_loss(logits, labels, self.terms, num_items_in_batch)
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits)


class GPT2BaseForSequenceClassification(_GPT2Classifier):
    """Logits = head(last hidden state at the last real token).

    Args:
        config: a GPT2Config.
        is_multilabel: whether any number of labels is right.
        is_multihead: whether several questions are asked at once.
        head_class_sizes: labels a head; 1 is a regression.
        head_weights: the weight of each head's loss; 1 if not given.
        head_class: called as ``head_class(config, **head_class_kwargs)``; a linear layer without bias if not given.
    """

    def __init__(
        self,
        config: GPT2Config,
        is_multilabel: bool = False,
        is_multihead: bool = False,
        head_class_sizes: int | Sequence[int] = [],
        head_weights: float | Sequence[float] = [],
        head_class: type[nn.Module] | None = None,
        **head_class_kwargs: Any,
    ) -> None:
        super().__init__(config)
        self._build(is_multilabel, is_multihead, head_class_sizes, head_weights)
        if head_class is None:
            self.head: nn.Module = nn.Linear(config.n_embd, config.num_labels, bias=False)
        else:
            self.head = head_class(config, **head_class_kwargs)
        self.post_init()

    def _pool(self, hidden_states: Sequence[torch.Tensor], last: torch.Tensor) -> torch.Tensor:
        return hidden_states[-1][torch.arange(len(last), device=last.device), last]  # (n, n_embd)


class GPT2HiddenStateConcatForSequenceClassification(_GPT2Classifier):
    """Logits = head(the last `layer2concat` hidden states at the last real token, topmost first).

    The topmost state is after ``ln_f``, the others are raw block outputs. Arguments as above, and:

    Args:
        layer2concat: how many hidden states, counted from the top.
        head_class: called as ``head_class(config=config, layer2concat=…, **head_class_kwargs)``: ConcatHeadSimple (if
            not given), ConcatHeadExtended or one of your own.
    """

    def __init__(
        self,
        config: GPT2Config,
        layer2concat: int = 4,
        is_multilabel: bool = False,
        is_multihead: bool = False,
        head_class_sizes: int | Sequence[int] = [],
        head_weights: float | Sequence[float] = [],
        head_class: type[nn.Module] | None = None,
        **head_class_kwargs: Any,
    ) -> None:
        super().__init__(config)
        if not 1 <= layer2concat <= config.n_layer:
            raise ValueError(f"layer2concat must lie in 1 to n_layer ({config.n_layer}), got {layer2concat}")
        self.layer2concat = layer2concat
        self._build(is_multilabel, is_multihead, head_class_sizes, head_weights)
        head_class = head_class or head_class_named("ConcatHeadSimple")
        self.head: nn.Module = head_class(config=config, layer2concat=layer2concat, **head_class_kwargs)
        self.post_init()

    def _pool(self, hidden_states: Sequence[torch.Tensor], last: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(last), device=last.device)
        return torch.cat([hidden_states[-i][rows, last] for i in range(1, self.layer2concat + 1)], dim=-1)


def build_model(config: GPT2Config, spec: Spec, schema: Schema) -> _GPT2Classifier:
    """The model that a checkpoint's sections describe, with fresh weights and the loss of the schema's heads."""
    head_class = None if spec.head_class == "Linear" else head_class_named(spec.head_class)
    sizes = [head.width for head in schema]
    model: _GPT2Classifier
    if spec.architecture == "base":
        model = GPT2BaseForSequenceClassification(
            config, is_multihead=True, head_class_sizes=sizes, head_class=head_class, **spec.head_args
        )
    else:
        model = GPT2HiddenStateConcatForSequenceClassification(
            config,
            spec.layer2concat or 0,
            is_multihead=True,
            head_class_sizes=sizes,
            head_class=head_class,
            **spec.head_args,
        )
    model.terms = loss_terms(schema)
    return model
