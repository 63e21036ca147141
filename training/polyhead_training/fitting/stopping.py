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
    """Asks the Trainer to save and stop at the end of the step in which a signal came, to any of the processes."""

    def __init__(self, say: Callable[[str], None], arguments: TrainingArguments) -> None:
        self.say = say
        self.arguments = arguments
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
            self.wanted = self.is_wanted_anywhere()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.wanted:
            raise Interrupted("stopped; a checkpoint is written")

    def is_wanted_anywhere(self) -> bool:
        """Whether a signal came to any process; all of them must ask at the same time."""
        if self.arguments.world_size == 1:
            return self.wanted
        flag = torch.tensor(float(self.wanted), device=self.arguments.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item())

    def _on_signal(self, number: int, _: Any) -> None:
        # Launchers repeat a terminal's signal, so only a lone process takes a second one for impatience.
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
        # An epoch's end is evaluated and then saved; saved before, a run that is killed there would go on without it.
        if args.eval_strategy != "epoch" or not _ends_epoch(state):
            control.should_save = control.should_log = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The Trainer takes a stop for the end of an epoch; one amid an epoch is saved already."""
        if self.stopped and not _ends_epoch(state):
            control.should_evaluate = control.should_save = control.should_log = False


def _ends_epoch(state: TrainerState) -> bool:
    return state.epoch == int(state.epoch or 0)
