"""``[model]``, ``[warm_start]`` and ``[lora]``: the network, and where its weights come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from polyhead.schema import Architecture
from polyhead.windows import MOST_WINDOWS, LongTexts
from polyhead_training.config.section import Section


class ModelConfig(Section):
    """Architecture, head, and where the body's weights come from.

    Attributes:
        architecture: ``base`` reads the topmost hidden state of the last token, ``hidden_state_concat`` the last
            `layer2concat` ones.
        layer2concat: how many hidden states; hidden_state_concat only.
        head_class: ``Linear``, ``ConcatHeadSimple``, ``ConcatHeadExtended`` or ``package.module:Class``. By default
            ``Linear`` with base and ``ConcatHeadSimple`` with hidden_state_concat.
        head_args: arguments of the head class.
        max_length: how many tokens the network reads at once.
        long_texts: a longer text is cut: ``truncate`` does not read its rest, ``windows`` reads it in windows of
            max_length tokens that overlap, and answers with the mean of their logits.
        window_overlap: how many tokens neighbouring windows share; by default a quarter of max_length.
        most_windows: what a text has after so many windows is not read.
        ngrams: fits a linear model on words, pairs of words and characters beside the network, and adds it to the heads
            that it helps on validation rows (`polyhead.ngrams`).
        pretrained: a local path or hub name of GPT-2 weights and their tokenizer. Without it, training is from scratch.
        gpt2: fields of transformers' GPT2Config for a model from scratch (``vocab_size`` is also the tokenizer's); with
            `pretrained` only the dropouts.
    """

    architecture: Architecture = "base"
    layer2concat: int = Field(default=4, ge=1)
    head_class: str | None = Field(default=None, examples=["ConcatHeadExtended"])
    head_args: dict[str, Any] = Field(default={}, examples=[{"classifier_dropout": 0.2}])
    max_length: int = Field(default=256, ge=1, examples=[128])
    long_texts: Literal["truncate", "windows"] = Field(default="truncate", examples=["windows"])
    window_overlap: int | None = Field(default=None, ge=0, examples=[64])
    most_windows: int = Field(default=8, ge=2, le=MOST_WINDOWS, examples=[16])
    ngrams: bool = True
    pretrained: str | None = Field(default=None, examples=["gpt2", "models/my-gpt2"])
    gpt2: dict[str, Any] = Field(default={}, examples=[{"n_layer": 2, "n_embd": 192, "n_head": 4, "vocab_size": 8000}])

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        if self.pretrained is not None and (
            shape := sorted(set(self.gpt2) - {"resid_pdrop", "embd_pdrop", "attn_pdrop"})
        ):
            raise ValueError(f"gpt2.{shape[0]} describes a model from scratch; it does not go with pretrained")
        if self.window_overlap is not None and self.window_overlap >= self.max_length:
            raise ValueError(
                f"window_overlap ({self.window_overlap}) must be smaller than max_length ({self.max_length})"
            )
        return self

    @property
    def windows(self) -> LongTexts | None:
        """The windows of long texts; None if these are truncated."""
        if self.long_texts == "truncate":
            return None
        overlap = self.max_length // 4 if self.window_overlap is None else self.window_overlap
        return LongTexts(stride=self.max_length - overlap, most_windows=self.most_windows)

    @property
    def head(self) -> str:
        """The head class's name; by default ``Linear`` for base and ``ConcatHeadSimple`` for hidden_state_concat."""
        return self.head_class or ("Linear" if self.architecture == "base" else "ConcatHeadSimple")


class WarmStartConfig(Section):
    """Trains the body as a causal language model on the same texts before the heads are trained.

    Attributes:
        epochs: how often each text is read.
        learning_rate: the highest one; it follows a cosine.
        batch_size: blocks of max_length tokens per step.
        optim: as in ``[training]``.
        texts: more files to learn from. Only their text is read.
    """

    epochs: float = Field(default=1, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_size: int = Field(default=32, ge=1)
    optim: str = Field(default="auto", examples=["muon"])
    texts: str | list[str] = Field(default=[], examples=["unlabelled/*.jsonl"])


class LoraConfig(Section):
    """Low-rank adapters on the body (Hu et al. 2021, arXiv:2106.09685) through peft, merged into the weights.

    Attributes:
        r: the rank.
        alpha: the adapters' output is multiplied by alpha / r.
        dropout: of the adapters' input.
        target_modules: the linear layers that get an adapter.
    """

    r: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1, examples=[0.1])
    target_modules: list[str] = Field(default=["c_attn", "c_proj", "c_fc"])
