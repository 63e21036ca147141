"""transformers' Trainer for classifiers with many heads: a loss over the global batch, and runs that resume exactly.

Resuming reads optimizer, scheduler and random states through ``torch.load(weights_only=True)``, which runs no code.
Weights are safetensors. The Trainer's ``training_args.bin`` is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from polyhead_training.fitting.callbacks import LossAtCheckpoints
from polyhead_training.model.layers import regroup
from polyhead_training.model.losses import label_counts
from polyhead_training.model.modeling import MultiHeadClassifier
from polyhead_training.model.packing import collate


class ClassifierTrainer(Trainer):
    """Fits a classifier of `polyhead_training.model.modeling`.

    Each head's loss is divided by the number of its labels in all batches of a step, accumulated and of all processes.
    Therefore loss and gradient do not depend on how a step's rows are distributed.

    Args:
        layer_lr_decay: as in FitConfig.
    """

    def __init__(self, *, layer_lr_decay: float = 1.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.layer_lr_decay = layer_lr_decay
        self.classifier = cast(MultiHeadClassifier, self.model)
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.add_callback(LossAtCheckpoints())

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with one learning rate per layer."""
        is_fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_fresh and self.layer_lr_decay < 1:
            regroup(optimizer, self.classifier, self.classifier.config.n_layer, self.layer_lr_decay)
        return optimizer

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The Trainer's, with rows in their order if several processes evaluate.

        The last batch is filled with repeated rows, which are cut from its end.
        """
        collator = self.data_collator
        if self.args.world_size > 1:
            self.data_collator = partial(collate, longest_first=False)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The same as for evaluation."""
        return self.get_eval_dataloader(test_dataset)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, *rest: Any, **more: Any
    ) -> Any:
        """Logits and labels. The loss is computed later from all rows, because a mean over batches depends on them."""
        _, logits, labels = super().prediction_step(model, inputs, False, *rest, **more)
        return None, logits, labels

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        counts = torch.stack([label_counts(batch["labels"], self.classifier.terms) for batch in batch_samples]).sum(0)
        return cast(torch.Tensor, self.accelerator.reduce(counts.to(device), "sum"))  # (heads,)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = rows["length"][:] if self.args.train_sampling_strategy == "group_by_length" else None
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return EpochOrder(len(rows), self.args.seed, lambda: int(self.state.epoch or 0), lengths, batch)


class EpochOrder(Sampler[int]):
    """An order of the rows that depends only on seed and epoch: a resumed run and every process draw the same.

    Args:
        epoch: is called when an epoch begins.
        lengths: if given, rows of similar length are neighbours, in groups of 50 batches of `batch` rows.
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
