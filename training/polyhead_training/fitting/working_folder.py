"""The working folder of a run that is not finished: ``<output>.training/``.

``run.json`` (the config and a digest of the data), ``checkpoints/`` and ``warm_start/`` of the Trainer,
``tokenizer.json``, ``trained/`` once nothing but writing is left, ``logs/`` of trackers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_model, save_model
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from polyhead_training.config import TrainingConfig
from polyhead_training.data.corpus import Corpus
from polyhead_training.errors import ConfigError


class WorkingFolder:
    """Where a run keeps what it would need to go on.

    Args:
        output: the checkpoint that the run is to write.
    """

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f"{output.name}.training")
        self.checkpoints = self.path / "checkpoints"
        self.warm_start = self.path / "warm_start"
        self.tokenizer = self.path / "tokenizer.json"
        self.logs = self.path / "logs"
        self._run = self.path / "run.json"
        self._trained = self.path / "trained"

    def check(self, *, resume: bool, restart: bool) -> None:
        """Makes sure that no unfinished run is lost, and that there is one to go on with.

        Raises:
            ConfigError: says which option is needed.
        """
        if self.path.exists() and any(path.name != "logs" for path in self.path.iterdir()) and not self._run.exists():
            raise ConfigError(f"{self.path}: holds something that is no training run; name another output")
        if resume and not self._run.exists():
            raise ConfigError(f"{self.path}: no unfinished run lies here; start without --resume")
        if self._has_progress() and not resume and not restart:
            raise ConfigError(
                f"{self.path}: an unfinished run lies here; go on with --resume or throw it away with --restart"
            )

    def begin(self, config: TrainingConfig, corpus: Corpus, *, resume: bool) -> None:
        """Notes what this run is; when it goes on, makes sure that it still is that.

        Raises:
            ConfigError: the config or the data changed; names the field.
        """
        run = {"config": config.model_dump(mode="json", exclude={"output"}), "data": _digest(corpus)}
        if resume:
            _compare(json.loads(self._run.read_text(encoding="utf-8")), run, self.path)
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        _write_whole(self._run, json.dumps(run, indent=2))

    def last_checkpoint(self, folder: Path) -> str | None:
        """The newest of the Trainer's checkpoints that is whole; those that are not are removed."""
        found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        while found and not _is_whole(found[-1]):
            shutil.rmtree(found.pop(), ignore_errors=True)
        return str(found[-1]) if found else None

    def keep_trained(self, trainer: Trainer) -> None:
        """Keeps the trained model: from here on nothing is trained again, whatever happens to the rest of the run."""
        staging = self.path / ".trained"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        save_model(trainer.model, str(staging / "model.safetensors"))
        trainer.state.save_to_json(str(staging / TRAINER_STATE_NAME))
        os.rename(staging, self._trained)

    def load_trained(self, trainer: Trainer) -> bool:
        """Gives the trainer the trained model and its history, if there is one."""
        if not self._trained.exists():
            return False
        load_model(trainer.model, self._trained / "model.safetensors")
        trainer.state = TrainerState.load_from_json(str(self._trained / TRAINER_STATE_NAME))
        return True

    def finish(self, *, keep_logs: bool) -> None:
        """Removes the folder, or all of it but the logs."""
        if not keep_logs:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for path in self.path.iterdir():
            if path not in (self.logs, self._run):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._run.unlink()  # last: until then the folder is known as a run's

    def _has_progress(self) -> bool:
        return self._trained.exists() or any(
            next(folder.glob(pattern), None)
            for folder, pattern in ((self.checkpoints, "checkpoint-*"), (self.warm_start, "*"))
        )


def _is_whole(checkpoint: Path) -> bool:
    """The Trainer writes its state last."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _digest(corpus: Corpus) -> str:
    """Of the schema and of all rows to train on and to validate with."""
    digest = hashlib.sha256(json.dumps(corpus.schema.to_json()).encode())
    for split in (corpus.train, corpus.validation):
        for batch in split.rows.iter(1000):
            digest.update(json.dumps(batch["text"]).encode())
            digest.update(np.asarray(batch["labels"], dtype=np.float32).tobytes())
    return digest.hexdigest()


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    old, new = dict(_leaves(before["config"])), dict(_leaves(now["config"]))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise ConfigError(
                f"{path}: cannot go on: {name} was {old.get(name)!r} and is {new.get(name)!r}; "
                "change it back or start anew with --restart"
            )
    if before["data"] != now["data"]:
        raise ConfigError(f"{path}: cannot go on: the data changed; change it back or start anew with --restart")


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """A nested config as ``training.epochs`` and the like."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in items:
            yield from _leaves(inner, f"{place}.{name}" if place else str(name))
    else:
        yield place, value


def _write_whole(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}")
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, path)
