"""What happens at the Trainer's steps: progress and scores are shown; Ctrl-C and SIGTERM save and stop the run."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polyhead.schema import Head
from polyhead_rows.progress import ProgressMeter, progress
from polyhead_training.errors import Interrupted
from polyhead_training.evaluation.metrics import HEADLINE


class ShowProgress(TrainerCallback):
    """Shows how far and how fast training is and how long the rest takes, and says each evaluation's scores.

    Args:
        title: of the progress.
        tokens_per_row: on average, for tokens/s.
        heads: whose main scores are said.
    """

    def __init__(
        self, title: str, say: Callable[[str], None], tokens_per_row: float, heads: Iterable[Head] = ()
    ) -> None:
        self.title = title
        self.say = say
        self.tokens_per_row = tokens_per_row
        self.heads = tuple(heads)
        self.started = 0.0
        self.first_step = 0
        self.loss: dict[str, object] = {}
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
        self._meter.advance(1, **self.loss, **{"tokens/s": tokens_per_s})
        if state.global_step == state.max_steps:
            self._meter.show()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Keeps the latest training loss."""
        if logs and "loss" in logs:
            self.loss = {"loss": float(logs["loss"])}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Says the validation loss and each head's main score."""
        if metrics:
            found = [
                (f"{head.name} {HEADLINE[head.kind]}", f"eval_{head.name}/{HEADLINE[head.kind]}") for head in self.heads
            ]
            scores = [f"{name} {metrics[key]:.3f}" for name, key in found if key in metrics]
            self.say(f"  epoch {state.epoch:g}: " + ", ".join([f"validation loss {metrics['eval_loss']:.3f}", *scores]))


class StopOnSignal(TrainerCallback):
    """Asks the Trainer to save and stop at the end of the step in which any of the processes gets a signal."""

    def __init__(self, say: Callable[[str], None], arguments: TrainingArguments) -> None:
        self.say = say
        self.arguments = arguments
        self.wanted = self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals in this block, even if the process was started with SIGINT ignored.

        Raises:
            Interrupted: at the end, if a signal came.
        """
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
        # Launchers repeat a terminal's signal, so a second one means impatience only if there is one process.
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
        # The end of an epoch is evaluated, then saved. Saved before, a run killed in between would miss the evaluation.
        if args.eval_strategy != "epoch" or not _ends_epoch(state):
            control.should_save = control.should_log = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The Trainer treats a stop as the end of an epoch. In the middle of one, everything is saved already."""
        if self.stopped and not _ends_epoch(state):
            control.should_evaluate = control.should_save = control.should_log = False


class LossAtCheckpoints(TrainerCallback):
    """Logs the training loss at each checkpoint, so that a resumed run logs the same as an unbroken one."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Logs at steps that end with a checkpoint."""
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


def _ends_epoch(state: TrainerState) -> bool:
    return state.epoch == int(state.epoch or 0)
