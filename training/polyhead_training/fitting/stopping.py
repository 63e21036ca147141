"""Stopping a fit by Ctrl-C or SIGTERM: the current step is finished and a checkpoint written, to go on from."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polyhead_training.errors import Interrupted


class StopOnSignal(TrainerCallback):
    """Asks the Trainer to save and stop at the end of the step in which a signal came."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.wanted = self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While a fit runs.

        Raises:
            Interrupted: at the end, if it was stopped.
        """
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.wanted or self.stopped:
            raise Interrupted("stopped; a checkpoint is written")

    def _on_signal(self, number: int, _: Any) -> None:
        # Launchers repeat a terminal's signal, so only a lone process takes a second one for impatience.
        if self.wanted and not torch.distributed.is_initialized():
            raise KeyboardInterrupt
        self.wanted = True
        self.say("stopping at the end of this step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Saves and stops, all processes at the same step."""
        wanted = self.wanted
        if args.world_size > 1:
            flag = torch.tensor(float(wanted), device=args.device)
            torch.distributed.all_reduce(flag)
            wanted = bool(flag.item())
        if wanted and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_log = control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The Trainer takes a stop for the end of an epoch; this one is none and is saved already."""
        if self.stopped and state.epoch != int(state.epoch or 0):
            control.should_evaluate = control.should_save = control.should_log = False
