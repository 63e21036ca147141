"""The two model classes of that_nlp_library's GPT-2 module, with its signatures, logits, losses and state-dict keys.

Four things differ on purpose. The last real token comes from the attention mask, so neither ``<|endoftext|>`` in a
text nor the padding side changes a score. Regression works at batch 1. Multilabel works together with multihead. Keys
and values are returned only if `use_cache` is true, and hidden states only if `output_hidden_states` is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model, GPT2PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from polyhead.checkpoint import Spec
from polyhead.heads import head_class_named
from polyhead.schema import Schema
from polyhead_training.model.losses import LossTerm, classification_loss, constructor_loss_terms, loss_terms
from polyhead_training.model.packing import fuse_steps, last_hidden_states

# transformers 5 renamed this argument and field.
CACHE = "cache" if "cache" in inspect.signature(GPT2Model.forward).parameters else "past_key_values"


class MultiHeadClassifier(GPT2PreTrainedModel):
    """What both architectures share: the body, pooling at the last real token, head and loss.

    Attributes:
        is_multilabel, is_multihead, head_class_sizes, head_weights: as given to the constructor, as lists.
        terms: what the loss is computed from.
    """

    config_class = GPT2Config
    base_model_prefix = "body_model"
    # A plain Trainer would pass the number of labels that are not -100. Ours passes `label_counts`.
    accepts_loss_kwargs: ClassVar[bool] = False
    terms: list[LossTerm]
    head: nn.Module
    pooled_layers = 1

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As transformers' method. It also reads the body of a language model, whose keys are ``transformer.*``."""
        options.setdefault("key_mapping", {r"^transformer\.": "body_model."})
        return super().from_pretrained(*arguments, **options)

    def _build(
        self,
        is_multilabel: bool,
        is_multihead: bool,
        head_class_sizes: int | Sequence[int],
        head_weights: float | Sequence[float],
    ) -> None:
        sizes = [int(head_class_sizes)] if isinstance(head_class_sizes, int | np.integer) else list(head_class_sizes)
        if isinstance(head_weights, int | float | np.number):
            head_weights = [float(head_weights)] * len(sizes)
        weights = list(head_weights)
        self.is_multilabel, self.is_multihead = is_multilabel, is_multihead
        self.head_class_sizes, self.head_weights = sizes, weights or [1.0] * len(sizes)
        if len(self.head_weights) != len(sizes):
            raise ValueError(f"head_weights must be one per head ({len(sizes)}), got {len(weights)}")
        self.terms = constructor_loss_terms(is_multilabel, is_multihead, sizes, self.head_weights)
        self.config.num_labels = self.num_labels = sum(sizes)
        end = self.config.eos_token_id
        self.config.pad_token_id = end[0] if isinstance(end, list) else end
        self.body_model = GPT2Model(self.config)
        fuse_steps(self.body_model)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        lengths: torch.Tensor | None = None,
        pooling: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Logits ``(n, num_labels)`` and, with `labels` as in `classification_loss`, the loss.

        Args:
            input_ids: ``(n, length)``, padded on either side; or, with `lengths`, packed ``(tokens,)``.
            past_key_values: keys and values of earlier tokens.
            attention_mask: ``(n, length)``, 1 for real tokens, also for those of `past_key_values`. Without it, pad ids
                at the end of a row are padding and all other tokens are real. With `inputs_embeds` all are real.
            position_ids: by default counted from each text's first real token.
            head_mask: must be None: transformers 5 has no such masks.
            output_attentions: also returns the attention weights of each layer, computed by transformers' slower
                ``eager`` attention.
            return_dict: if false, returns a tuple without what is None: (loss), logits, and what was asked for.
            lengths: ``(n,)``, of a packed batch as `polyhead_training.model.packing.collate` makes it. Such a batch
                takes `pooling`, `labels` and `num_items_in_batch`, and no other argument.
            pooling: ``(n, windows)``, of a packed batch whose texts have several windows: the share of each window in
                the logits of each text.
            num_items_in_batch: `label_counts` ``(heads,)`` over all batches of one optimizer step; by default of this
                batch.

        Raises:
            ValueError: the arguments contradict each other.
        """
        if head_mask is not None:
            raise ValueError("head_mask: transformers 5 has no such masks")
        outputs: Any = None
        if lengths is not None and input_ids is not None:
            others = (past_key_values, attention_mask, token_type_ids, position_ids, inputs_embeds)
            if any(other is not None for other in others) or use_cache or output_attentions or output_hidden_states:
                raise ValueError(
                    "a packed batch (lengths) takes only input_ids, pooling, labels and num_items_in_batch"
                )
            states = last_hidden_states(self.body_model, input_ids, lengths, self.pooled_layers)
        else:
            attentions = self.config.output_attentions if output_attentions is None else output_attentions
            outputs, last = self._run_body(
                input_ids,
                attention_mask,
                position_ids,
                past_key_values,
                output_attentions=bool(attentions),
                token_type_ids=token_type_ids,
                inputs_embeds=inputs_embeds,
                use_cache=bool(use_cache),
            )
            rows = torch.arange(len(last), device=last.device)
            states = torch.stack(
                [outputs.hidden_states[-place][rows, last] for place in range(1, self.pooled_layers + 1)]
            )
        pooled = states.transpose(0, 1).flatten(1).float()  # (n, layers * n_embd)
        with torch.autocast(pooled.device.type, enabled=False):  # scores are served in float32
            logits = self.head(pooled)  # (n or windows, num_labels)
            if pooling is not None:
                logits = pooling @ logits  # (n, num_labels)
        loss = None if labels is None else classification_loss(logits, labels, self.terms, num_items_in_batch)
        result = SequenceClassifierOutputWithPast(
            loss,
            logits,
            getattr(outputs, CACHE, None),
            outputs.hidden_states if output_hidden_states else None,
            getattr(outputs, "attentions", None),
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()

    def _run_body(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past: Any,
        *,
        output_attentions: bool,
        **inputs: Any,
    ) -> tuple[Any, torch.Tensor]:
        """What transformers' own forward returns for a padded batch, and each text's last real token ``(n,)``."""
        tokens = input_ids if input_ids is not None else inputs["inputs_embeds"]
        if tokens is None:
            raise ValueError("give input_ids or inputs_embeds")
        n, length = tokens.shape[:2]
        real = None
        if attention_mask is None:
            earlier = 0 if past is None else past.get_seq_length()
            attention_mask = torch.ones(n, earlier + length, dtype=torch.long, device=tokens.device)
            if input_ids is not None and self.config.pad_token_id is not None:
                real = input_ids != self.config.pad_token_id
        elif attention_mask.ndim != 2:
            raise ValueError(f"attention_mask must have the shape (n, length), got {tuple(attention_mask.shape)}")
        attention_mask = (attention_mask != 0).long()
        real = attention_mask[:, -length:] if real is None else real
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]
        inputs |= {"attention_mask": attention_mask, "position_ids": position_ids, CACHE: past}
        with self._eager(output_attentions):
            outputs = self.body_model(
                input_ids,
                output_hidden_states=True,
                output_attentions=output_attentions,
                return_dict=True,
                **inputs,
            )
        places = torch.arange(1, length + 1, device=tokens.device)
        return outputs, (real * places).argmax(-1)

    @contextmanager
    def _eager(self, wanted: bool) -> Iterator[None]:
        """Runs the one attention that returns its weights in this block."""
        config, before = self.body_model.config, self.body_model.config._attn_implementation
        try:
            if wanted:
                config._attn_implementation = "eager"
            yield
        finally:
            config._attn_implementation = before


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

    The topmost state is after ``ln_f``; the others are raw block outputs, and the lowest one is the sum of embeddings.
    Other arguments are those of GPT2BaseForSequenceClassification.

    Args:
        layer2concat: how many hidden states, counted from the top: 1 to n_layer + 1.
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
        if not 1 <= layer2concat <= config.n_layer + 1:
            raise ValueError(f"layer2concat must lie in 1 to n_layer + 1 ({config.n_layer + 1}), got {layer2concat}")
        self.layer2concat = self.pooled_layers = layer2concat
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
