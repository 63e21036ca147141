"""transformers' Trainer for classifiers with many heads: a loss over the global batch, and runs that can go on exactly.

Resuming reads optimizer, scheduler and random states through ``torch.load(weights_only=True)``, which builds tensors
and plain values and calls nothing; weights are safetensors, and the Trainer's ``training_args.bin`` is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from polyhead_training.model.layers import regroup
from polyhead_training.model.losses import label_counts


class ClassifierTrainer(Trainer):
    """Fits a classifier of `polyhead_training.model.modeling`.

    Each head's loss is divided by the labels it has in all batches of a step, accumulated and of all processes: loss
    and gradient do not depend on how a step's rows are dealt out.

    Args:
        layer_lr_decay: as in FitConfig.
    """

    def __init__(self, *, layer_lr_decay: float = 1.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.layer_lr_decay = layer_lr_decay
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.add_callback(LossAtCheckpoints())

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's, with a learning rate a layer."""
        is_fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_fresh and self.layer_lr_decay < 1:
            regroup(optimizer, self.model, self.model.config.n_layer, self.layer_lr_decay)
        return optimizer

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """With rows in order where several processes evaluate: repeats that fill a last batch are cut from its end."""
        collator = self.data_collator
        if self.args.world_size > 1:
            self.data_collator = partial(collator, longest_first=False)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """As for evaluation."""
        return self.get_eval_dataloader(test_dataset)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, *rest: Any, **more: Any
    ) -> Any:
        """Logits and labels; the loss is a metric of all rows at once, as a mean over batches depends on them."""
        _, logits, labels = super().prediction_step(model, inputs, False, *rest, **more)
        return None, logits, labels

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        counts = torch.stack([label_counts(batch["labels"], self.model.terms) for batch in batch_samples]).sum(0)
        return self.accelerator.reduce(counts.to(device), "sum")  # (heads,)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = rows["length"][:] if self.args.train_sampling_strategy == "group_by_length" else None
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return EpochOrder(len(rows), self.args.seed, lambda: int(self.state.epoch or 0), lengths, batch)


class EpochOrder(Sampler[int]):
    """An order of the rows that depends on seed and epoch alone: a resumed run and every process draw the same.

    Args:
        epoch: is asked when an epoch begins.
        lengths: if given, rows of similar length stand together, in groups of 50 batches of `batch` rows.
    """

    def __init__(
        self, rows: int, seed: int, epoch: Callable[[], int], lengths: Sequence[int] | None = None, batch: int = 1
    ) -> None:
        self.rows, self.seed, self.epoch, self.lengths, self.batch = rows, seed, epoch, lengths, batch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        if self.lengths is not None:
            return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))
        return iter(torch.randperm(self.rows, generator=generator).tolist())


class LossAtCheckpoints(TrainerCallback):
    """Logs the training loss wherever a checkpoint is written, so that a resumed run logs what an unbroken one does."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Steps that end with a checkpoint."""
        control.should_log |= control.should_save

    on_epoch_end = on_step_end
