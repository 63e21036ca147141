"""The working folder of a run that is not finished: ``<output>.training/``.

``run.json`` (the fingerprint), ``checkpoints/`` and ``warm_start/`` of the Trainer, ``tokenizer.json``, ``trained/``
once nothing but writing is left, ``logs/`` of trackers. Logs are never removed; earlier runs' are ``logs-1/`` and on.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from polyhead_training.config import TrainingConfig
from polyhead_training.data.corpus import Corpus
from polyhead_training.errors import ConfigError
from polyhead_training.fitting.fingerprint import check_unchanged, fingerprint


class WorkingFolder:
    """Where a run keeps what it would need to go on.

    Args:
        output: the checkpoint that the run is to write.

    Raises:
        ConfigError: `output` is no name of a folder.
    """

    def __init__(self, output: Path) -> None:
        if output.name in ("", ".."):
            raise ConfigError(f"output {str(output)!r}: must name a folder of its own, as 'runs/reviews'")
        self.path = output.with_name(f"{output.name}.training")
        self.checkpoints = self.path / "checkpoints"
        self.warm_start = self.path / "warm_start"
        self.finished_warm_start = self.warm_start / "finished"
        self.tokenizer = self.path / "tokenizer.json"
        self.logs = self.path / "logs"
        self._run = self.path / "run.json"
        self._trained = self.path / "trained"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other runs away while this one lasts; the lock of a killed run is free.

        Its file lies beside the folder, which is removed and made anew within a run.

        Raises:
            ConfigError: another run has it.
        """
        path = self.path.with_name(f".{self.path.name}.lock")
        refusal = ConfigError(f"{self.path}: another run is writing here; wait for its end or name another output")
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise refusal from None
            except OSError:
                pass  # a file system that has no locks
            # Whoever held it may have removed the file after it was opened here: then this lock is nobody's.
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                raise refusal
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def check(self, *, resume: bool, restart: bool) -> None:
        """Makes sure that no unfinished run is lost, and that there is one to go on with.

        Raises:
            ConfigError: says which option is needed.
        """
        if self.path.exists() and not self._run.exists() and (not self.path.is_dir() or self._parts()):
            raise ConfigError(f"{self.path}: holds something that is no training run; name another output")
        if resume and not self._run.exists():
            raise ConfigError(f"{self.path}: no unfinished run lies here; start without --resume")
        if self._has_progress() and not resume and not restart:
            raise ConfigError(
                f"{self.path}: an unfinished run lies here; go on with --resume or throw it away with --restart"
            )

    def begin(self, config: TrainingConfig, corpus: Corpus, *, processes: int, resume: bool) -> None:
        """Notes what this run is; when it goes on, makes sure that it still is that.

        Raises:
            ConfigError: the config, the data or the machine changed; says what.
        """
        run = fingerprint(config, corpus, processes)
        if resume:
            check_unchanged(json.loads(self._run.read_text(encoding="utf-8")), run, self.path)
            return
        self.clear()
        self.path.mkdir(parents=True, exist_ok=True)
        if self.logs.exists():
            names = (self.path / f"logs-{number}" for number in count(1))
            os.rename(self.logs, next(path for path in names if not path.exists()))
        _write_whole(self._run, json.dumps(run, indent=2))

    def keep_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Keeps the tokenizer, which other processes and a resumed run take."""
        _write_whole(self.tokenizer, tokenizer.to_str())

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

    def clear(self) -> None:
        """Removes the folder, or all of it but logs."""
        if not self.path.exists():
            return
        for path in self._parts():
            if path != self._run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._run.unlink(missing_ok=True)  # last: until then the folder is known as a run's
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _parts(self) -> list[Path]:
        """What lies in the folder but logs."""
        return [path for path in self.path.iterdir() if path.name.partition("-")[0] != "logs"]

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


def _write_whole(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}")
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, path)
