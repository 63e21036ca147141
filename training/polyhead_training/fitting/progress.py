"""Progress of a fit as lines that read well in a terminal and in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polyhead.schema import Head
from polyhead_training.evaluation.metrics import HEADLINE

EVERY_S = 10.0


class ProgressLines(TrainerCallback):
    """Says every few seconds how far and fast training is and how long it will take, and each evaluation's scores.

    Args:
        tokens_a_row: on average, for tokens/s.
        heads: whose main scores are said.
    """

    def __init__(self, say: Callable[[str], None], tokens_a_row: float, heads: Iterable[Head] = ()) -> None:
        self.say = say
        self.tokens_a_row = tokens_a_row
        self.heads = tuple(heads)
        self.started = self.said = 0.0
        self.first_step = 0
        self.loss = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock."""
        self.started = self.said = time.monotonic()
        self.first_step = state.global_step
        if state.global_step:
            self.say(f"going on after step {state.global_step} of {state.max_steps}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Says how far it is."""
        now = time.monotonic()
        if now - self.said < EVERY_S and state.global_step < state.max_steps:
            return
        self.said = now
        steps_a_s = (state.global_step - self.first_step) / max(now - self.started, 1e-9)
        rows_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        minutes, seconds = divmod(round((state.max_steps - state.global_step) / steps_a_s), 60)
        self.say(
            f"  step {state.global_step} of {state.max_steps}{self.loss}, "
            f"{steps_a_s * rows_a_step * self.tokens_a_row:,.0f} tokens/s, {minutes}:{seconds:02d} left"
        )

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
            self.loss = f", loss {float(logs['loss']):.3f}"

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
