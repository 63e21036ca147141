"""Stopping by signal: where a checkpoint is written, and that all processes stop together."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from polyhead_training.errors import Interrupted
from polyhead_training.fitting.trainer import StopOnSignal


class AnotherProcessIsAsked(StopOnSignal):
    """Stands for the process of several to which no signal comes."""

    def is_wanted_anywhere(self) -> bool:
        """What the processes agree on."""
        return True


def step(stop: StopOnSignal, strategy: str, epoch: float, number: int = 4) -> TrainerControl:
    """The Trainer's control after a step of eight."""
    control = TrainerControl()
    arguments = TrainingArguments(output_dir="unused", eval_strategy=strategy, eval_steps=1, use_cpu=True)
    stop.on_step_end(arguments, TrainerState(epoch=epoch, global_step=number, max_steps=8), control)
    return control


@pytest.mark.parametrize(
    ("strategy", "epoch", "saves"), [("epoch", 1.0, False), ("epoch", 1.25, True), ("steps", 1.0, True)]
)
def test_an_epoch_is_evaluated_before_it_is_saved(tmp_path: Path, strategy: str, epoch: float, saves: bool) -> None:
    """At its end the Trainer does both; a save of our own comes elsewhere."""
    stop = AnotherProcessIsAsked(lambda _: None, TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    control = step(stop, strategy, epoch)
    assert (control.should_training_stop, control.should_save) == (True, saves)


def test_all_processes_stop_together(tmp_path: Path) -> None:
    """Also one that no signal came to, also after the last step, when there is nothing left to stop."""
    stop = AnotherProcessIsAsked(lambda _: None, TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    with pytest.raises(Interrupted), stop.listening():
        assert not step(stop, "epoch", 2.0, number=8).should_training_stop
    assert not stop.stopped


def test_a_signal_after_the_last_step_counts(tmp_path: Path) -> None:
    """It is said as the others are."""
    stop = StopOnSignal(lambda _: None, TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    with pytest.raises(Interrupted), stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
