"""Progress of a fit as lines that read well in a terminal and in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polyhead.schema import Schema
from polyhead_training.metrics import HEADLINE

EVERY_S = 10.0


class ProgressLines(TrainerCallback):
    """Says every few seconds how far training is and how long it will take, and each epoch's validation scores."""

    def __init__(self, schema: Schema, say: Callable[[str], None]) -> None:
        self.schema = schema
        self.say = say
        self.started = self.said = 0.0
        self.loss = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock."""
        self.started = self.said = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Says how far it is."""
        now = time.monotonic()
        if now - self.said < EVERY_S and state.global_step < state.max_steps:
            return
        self.said = now
        left_s = (now - self.started) / state.global_step * (state.max_steps - state.global_step)
        minutes, seconds = divmod(round(left_s), 60)
        self.say(f"  step {state.global_step} of {state.max_steps}{self.loss}, {minutes}:{seconds:02d} left")

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
        """Says each head's main validation score."""
        if metrics:
            found = [
                (f"{head.name} {HEADLINE[head.kind]}", f"eval_{head.name}/{HEADLINE[head.kind]}")
                for head in self.schema
            ]
            scores = [f"{name} {metrics[key]:.3f}" for name, key in found if key in metrics]
            self.say(f"  epoch {state.epoch:g}: validation loss {metrics['eval_loss']:.3f}, {', '.join(scores)}")
