"""transformers' Trainer for classifiers with many heads, and its callbacks.

The loss is over the global batch, and runs resume exactly. Resuming reads optimizer, scheduler and random states by
``torch.load(weights_only=True)``, which runs no code. Weights are safetensors. The Trainer's ``training_args.bin`` is
never read.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from polyhead.schema import Head
from polyhead_rows.progress import ProgressMeter, progress
from polyhead_training.errors import Interrupted
from polyhead_training.evaluation.metrics import HEADLINE
from polyhead_training.fitting.memory import keep_freed_memory
from polyhead_training.fitting.optimizers import muon_with_adamw
from polyhead_training.model.layers import regroup
from polyhead_training.model.losses import label_counts
from polyhead_training.model.modeling import MultiHeadClassifier

LOSS_STEPS = 20  # over which the shown loss is the mean


class TotalsTrainer(Trainer):
    """A Trainer that logs times and losses of the whole run, not only of the session since the run was last resumed.

    Each entry of its history has ``seconds``: how long the run has taken so far, without what a killed session did
    after its last checkpoint.

    Args:
        muon: whether Muon trains the blocks' matrices, and the Trainer's AdamW the rest.
    """

    _began = 0.0
    _earlier_s: float | None = None
    _losses: deque[torch.Tensor] | None = None

    def __init__(self, *, muon: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.muon = muon

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, or the one with Muon."""
        if self.optimizer is None and self.muon:
            trained = cast(torch.nn.Module, self.model)
            _, adamw = self.get_optimizer_cls_and_kwargs(self.args)
            decayed = self.get_decay_parameter_names(trained)
            self.optimizer = muon_with_adamw(trained, decayed, self.args.weight_decay, adamw)
        return super().create_optimizer(model)

    @property
    def seconds(self) -> float:
        """How long the run has taken so far."""
        return max((entry.get("seconds", 0.0) for entry in self.state.log_history), default=0.0)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Starts the clock, and trains."""
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self._began, self._earlier_s = time.monotonic(), None
        self._losses = deque(maxlen=LOSS_STEPS * self.args.gradient_accumulation_steps)
        return super().train(*arguments, **options)

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """The Trainer's step, whose loss is kept for `recent_loss`."""
        loss = super().training_step(*arguments, **options)
        if self._losses is not None:
            self._losses.append(loss.detach())
        return loss

    def recent_loss(self) -> float | None:
        """The mean training loss of the last steps in this process; None before the first step."""
        if not self._losses:
            return None
        return float(torch.stack(list(self._losses)).mean()) * self.args.gradient_accumulation_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds ``seconds``, and replaces what the Trainer says of one session in its last entry."""
        if self._earlier_s is None:  # only now is the history of the earlier sessions there
            self._earlier_s = self.seconds
        seconds = round(self._earlier_s + time.monotonic() - self._began, 3) if self._began else self._earlier_s
        logs["seconds"] = seconds
        if "train_loss" in logs:
            rows = len(cast(Any, self.train_dataset)) * (self.state.epoch or 0)
            logs = logs | {
                "train_loss": mean_loss(self.state.log_history),
                "train_runtime": seconds,
                "train_samples_per_second": round(rows / max(seconds, 1e-9), 3),
                "train_steps_per_second": round(self.state.global_step / max(seconds, 1e-9), 3),
            }
        super().log(logs, start_time)


def mean_loss(history: Iterable[Mapping[str, Any]]) -> float:
    """The mean training loss of all steps. Each ``loss`` in the history is a mean of the steps since the last one."""
    total, last = 0.0, 0
    for entry in history:
        if "loss" in entry:
            total, last = total + entry["loss"] * (entry["step"] - last), entry["step"]
    return total / max(last, 1)


class ClassifierTrainer(TotalsTrainer):
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
        """The Trainer's data loader, but with rows in order if several processes evaluate.

        The last batch is filled with repeated rows, which are cut from its end.
        """
        collator = self.data_collator
        if self.args.world_size > 1:
            self.data_collator = partial(cast(Any, collator), longest_first=False)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

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


class ShowProgress(TrainerCallback):
    """Shows how far and how fast training is and how long the rest takes, and says each evaluation's scores.

    Args:
        title: of the progress.
        tokens_per_row: on average, for tokens/s.
        heads: the heads whose main scores are printed.
        best_metric: whose last value is shown: ``loss`` or ``head/metric``.

    Attributes:
        recent_loss: gives the shown loss; see `TotalsTrainer.recent_loss`.
    """

    def __init__(
        self,
        title: str,
        say: Callable[[str], None],
        tokens_per_row: float,
        heads: Iterable[Head] = (),
        best_metric: str = "loss",
    ) -> None:
        self.title = title
        self.say = say
        self.tokens_per_row = tokens_per_row
        self.heads = tuple(heads)
        self.best_metric = best_metric
        self.recent_loss: Callable[[], float | None] = lambda: None
        self._evaluated = 0  # batches of the current evaluation
        self._open = ExitStack()
        self._meter: ProgressMeter | None = None

    def close(self) -> None:
        """Ends the display; also after an error."""
        self._open.close()
        self._meter = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock."""
        self.started = time.monotonic()
        self.first_step = state.global_step
        if state.global_step:
            self.say(f"continuing after step {state.global_step} of {state.max_steps}")
        shown = state.is_world_process_zero
        self._meter = self._open.enter_context(
            progress(self.title, state.max_steps, unit="steps", done=state.global_step, shown=shown)
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Shows how far it is."""
        if self._meter is None:
            return
        steps_per_s = (state.global_step - self.first_step) / max(time.monotonic() - self.started, 1e-9)
        rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        tokens_per_s = round(steps_per_s * rows_per_step * self.tokens_per_row)
        self._meter.advance(1, loss=self.recent_loss, **{"tokens/s": tokens_per_s})
        if state.global_step == state.max_steps:
            self._meter.show()

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Shows how far an evaluation is."""
        self._evaluated += 1
        if self._meter is not None and eval_dataloader is not None:
            self._meter.advance(0, evaluating=f"{self._evaluated} of {len(eval_dataloader)} batches")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Says the validation loss and each head's main score."""
        self._evaluated = 0
        if metrics:
            if self._meter is not None:
                name = "validation loss" if self.best_metric == "loss" else self.best_metric
                self._meter.advance(0, evaluating=None, **{name: metrics.get(f"eval_{self.best_metric}")})
            found = {f"{head.name} {HEADLINE[head.kind]}": f"{head.name}/{HEADLINE[head.kind]}" for head in self.heads}
            found = {"validation loss": "loss"} | found
            scores = [f"{name} {metrics[f'eval_{key}']:.3f}" for name, key in found.items() if f"eval_{key}" in metrics]
            self.say(f"  epoch {state.epoch:g}: {', '.join(scores)}")


class StopOnSignal(TrainerCallback):
    """Asks the Trainer to save and stop at the end of the step in which any of the processes gets a signal."""

    def __init__(self, say: Callable[[str], None], arguments: TrainingArguments) -> None:
        self.say = say
        self.arguments = arguments
        self.wanted = self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals in this block, even if the process was started with SIGINT ignored.

        Only the main thread of a program can handle signals. In other threads this does nothing.

        Raises:
            Interrupted: at the end, if a signal came.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
            self.wanted = self.is_wanted_anywhere()
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self.wanted:
            raise Interrupted("stopped; a checkpoint is saved")

    def is_wanted_anywhere(self) -> bool:
        """Whether a signal came to any process. All processes must call this at the same time."""
        if self.arguments.world_size == 1:
            return self.wanted
        flag = torch.tensor(float(self.wanted), device=self.arguments.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item())

    def _on_signal(self, number: int, _: Any) -> None:
        # Launchers repeat a terminal's signal, so a second signal comes from the user only if there is one process.
        if self.wanted and not torch.distributed.is_initialized():
            raise KeyboardInterrupt
        self.wanted = True
        self.say("stopping at the end of this step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Saves and stops, all processes at the same step."""
        self.wanted = self.is_wanted_anywhere()
        if not self.wanted or state.global_step == state.max_steps:
            return
        self.stopped = control.should_training_stop = True
        # The end of an epoch is evaluated, then saved. Otherwise a run killed in between would lose the evaluation.
        if args.eval_strategy != "epoch" or not _ends_epoch(state):
            control.should_save = control.should_log = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The Trainer treats a stop as the end of an epoch. In the middle of one, everything is saved already."""
        if self.stopped and not _ends_epoch(state):
            control.should_evaluate = control.should_save = control.should_log = False


class LossAtCheckpoints(TrainerCallback):
    """Logs the training loss at each checkpoint, so that a resumed run logs the same as an uninterrupted one."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Logs at steps that end with a checkpoint."""
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


def _ends_epoch(state: TrainerState) -> bool:
    return state.epoch == int(state.epoch or 0)
