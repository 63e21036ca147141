"""The two model classes of that_nlp_library's GPT-2 module, with its signatures, logits, losses and state-dict keys.

Three things differ on purpose. The last real token comes from the attention mask, so neither ``<|endoftext|>`` in a
text nor the padding side changes a score. Regression works at batch 1. Multilabel works together with multihead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GPT2Config, GPT2Model, GPT2PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from polyhead.checkpoint import Spec
from polyhead.heads import head_class_named
from polyhead.schema import Schema
from polyhead_training.model.losses import LossTerm, classification_loss, constructor_loss_terms, loss_terms
from polyhead_training.model.packing import fuse_gelu, last_hidden_states


class MultiHeadClassifier(GPT2PreTrainedModel):
    """What both architectures share: the body, pooling at the last real token, head and loss."""

    config_class = GPT2Config
    base_model_prefix = "body_model"
    # A plain Trainer would pass the number of labels that are not -100. Ours passes `label_counts`.
    accepts_loss_kwargs: ClassVar[bool] = False
    terms: list[LossTerm]
    head: nn.Module
    pooled_layers = 1

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
            raise ValueError(f"head_weights must be one per head ({len(sizes)}), got {len(weights)}")
        self.terms = constructor_loss_terms(is_multilabel, is_multihead, sizes, weights)
        self.config.num_labels = self.num_labels = sum(sizes)
        end = self.config.eos_token_id
        self.config.pad_token_id = end[0] if isinstance(end, list) else end
        self.body_model = GPT2Model(self.config)
        fuse_gelu(self.body_model)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits ``(n, num_labels)`` and, with `labels` as in `classification_loss`, the loss.

        Args:
            input_ids: ``(n, length)``, padded on either side; or, with `lengths`, packed ``(tokens,)``.
            attention_mask: ``(n, length)``, 1 for real tokens; by default all are real.
            position_ids: by default counted from each text's first real token.
            lengths: ``(n,)``, of a packed batch as `polyhead_training.model.packing.collate` makes it.
            num_items_in_batch: `label_counts` ``(heads,)`` over all batches of one optimizer step; by default of this
                batch.
        """
        if lengths is not None and input_ids is not None:
            states = last_hidden_states(self.body_model, input_ids, lengths, self.pooled_layers)
        else:
            states = self._padded_states(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        pooled = states.transpose(0, 1).flatten(1).float()  # (n, layers * n_embd)
        with torch.autocast(pooled.device.type, enabled=False):  # scores are served in float32
            logits = self.head(pooled)  # (n, num_labels)
        loss = None if labels is None else classification_loss(logits, labels, self.terms, num_items_in_batch)
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits)

    def _padded_states(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As `last_hidden_states`, from a padded batch and transformers' own forward."""
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
        rows = torch.arange(len(last), device=last.device)
        return torch.stack([hidden_states[-place][rows, last] for place in range(1, self.pooled_layers + 1)])


class GPT2BaseForSequenceClassification(MultiHeadClassifier):
    """Logits = head(last hidden state at the last real token).

    Args:
        config: a GPT2Config.
        is_multilabel: whether a text may have any number of labels.
        is_multihead: whether there are several heads.
        head_class_sizes: labels per head; 1 is a regression.
        head_weights: the weight of each head's loss; by default 1.
        head_class: called as ``head_class(config, **head_class_kwargs)``; by default a linear layer without bias.
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
            self.head = nn.Linear(config.n_embd, self.num_labels, bias=False)
        else:
            self.head = head_class(config, **head_class_kwargs)
        GPT2PreTrainedModel.post_init(self)


class GPT2HiddenStateConcatForSequenceClassification(MultiHeadClassifier):
    """Logits = head(the last `layer2concat` hidden states at the last real token, topmost first).

    The topmost state is after ``ln_f``; the others are raw block outputs. Other arguments are those of
    GPT2BaseForSequenceClassification.

    Args:
        layer2concat: how many hidden states, counted from the top.
        head_class: called as ``head_class(config=config, layer2concat=…, **head_class_kwargs)``: by default
            ConcatHeadSimple; or ConcatHeadExtended, or your own class.
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
        self.pooled_layers = layer2concat
        self._build(is_multilabel, is_multihead, head_class_sizes, head_weights)
        head_class = head_class or head_class_named("ConcatHeadSimple")
        self.head = head_class(config=config, layer2concat=layer2concat, **head_class_kwargs)
        GPT2PreTrainedModel.post_init(self)


def build_model(config: GPT2Config, spec: Spec, schema: Schema) -> MultiHeadClassifier:
    """The model that a checkpoint's sections describe, with fresh weights and the plain loss of the schema's heads."""
    head_class = None if spec.head_class == "Linear" else head_class_named(spec.head_class)
    sizes = [head.width for head in schema]
    model: MultiHeadClassifier
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
