"""``[training]``, ``[calibration]`` and ``[report]``: how the weights are fitted, and what follows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from polyhead_training.config.section import Section


class EarlyStoppingConfig(Section):
    """Stops if `training.best_metric` has not improved by `min_delta` for `patience` evaluations.

    Attributes:
        patience: evaluations without an improvement.
        min_delta: a smaller change is no improvement.
    """

    patience: int = Field(default=3, ge=1)
    min_delta: float = Field(default=0.0, ge=0, examples=[0.001])


class FitConfig(Section):
    """How transformers' Trainer fits. Names and meanings are the same as in its TrainingArguments.

    Attributes:
        epochs: how often each row is read.
        max_steps: replaces `epochs` if given.
        batch_size: rows per step and process.
        gradient_accumulation_steps: batches whose gradients are added up before a step.
        learning_rate: the highest one, after the warm-up.
        lr_scheduler_type: any of transformers' schedulers.
        lr_scheduler_kwargs: arguments of the scheduler, as these of ``cosine_with_restarts``.
        warmup_ratio: the share of all steps in which the learning rate rises.
        weight_decay: of AdamW and Muon.
        max_grad_norm: longer gradients are shortened to this.
        optim: ``muon``, or any of transformers' optimizers. ``muon`` trains the matrices of the blocks, and AdamW the
            other weights. ``auto`` is ``muon`` from scratch and ``adamw_torch_fused`` for pretrained weights.
        precision: ``auto`` is bf16 on a GPU that has it and fp16 on other GPUs. On a CPU it is bf16 if the processor
            multiplies bf16 (AMX or AVX-512 bf16) and the model has 256 channels or more, else fp32.
        train_sampling_strategy: ``group_by_length`` puts texts of similar length into one batch.
        best_metric: chooses the best checkpoint and ends early stopping: ``loss`` or ``head/metric``.
        eval_steps: steps between evaluations; by default one epoch.
        freeze_layers: the embeddings and this many of the lowest blocks keep their weights.
        layer_lr_decay: the learning rate of each layer is this fraction of the layer above's (Howard and Ruder 2018,
            arXiv:1801.06146).
        gradient_checkpointing: computes activations again instead of keeping them: less memory, more time.
        report_to: trackers, such as ``tensorboard``, which writes to ``<output>.training/logs``. Logs of earlier runs
            are kept there.
    """

    epochs: float = Field(default=3, gt=0)
    max_steps: int | None = Field(default=None, ge=1, examples=[2000])
    batch_size: int = Field(default=32, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    lr_scheduler_type: str = Field(default="linear", examples=["cosine_with_restarts"])
    lr_scheduler_kwargs: dict[str, Any] = Field(default={}, examples=[{"num_cycles": 3}])
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    optim: str = Field(default="auto", examples=["muon", "adamw_torch_fused"])
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    train_sampling_strategy: Literal["random", "group_by_length"] = "random"
    eval_steps: int | None = Field(default=None, ge=1, examples=[500])
    best_metric: str = Field(default="loss", examples=["topic/macro_f1"])
    early_stopping: EarlyStoppingConfig | None = None
    freeze_layers: int = Field(default=0, ge=0, examples=[6])
    layer_lr_decay: float = Field(default=1.0, gt=0, le=1, examples=[0.9])
    gradient_checkpointing: bool = False
    report_to: list[str] = Field(default=[], examples=[["tensorboard"]])


class CalibrationConfig(Section):
    """What is fitted on the validation rows after training and stored in the checkpoint, if it helps in other rows.

    Attributes:
        temperature: one per head (Guo et al. 2017, arXiv:1706.04599), with the least negative log-likelihood.
        thresholds: of multi_label heads. ``f1`` gives each label the threshold with its best F1, which is good for
            macro F1; with few positive validation rows it is near that of all labels. ``micro_f1`` gives all labels the
            one threshold with the best micro F1. Labels that either would answer in more than three times their rows
            get a higher one, and labels that either would never answer a lower one, if that raises micro F1. ``fixed``
            keeps 0.5.
    """

    temperature: bool = True
    thresholds: Literal["f1", "micro_f1", "fixed"] = "f1"


class ReportConfig(Section):
    """What the report holds besides the scores.

    Attributes:
        baselines: what a constant answer and a linear model reach, fitted on the same training rows.
        suspects: labels of validation and test rows that are probably wrong.
        reasons: what each word did to the most confident mistakes: up to 3 per head, 24 in all, of about 60 texts each.
    """

    baselines: bool = True
    suspects: bool = True
    reasons: bool = True
