"""The working folder of an unfinished run, ``<output>.training/``, and the fingerprint that a resumed run must match.

It holds ``run.json`` (the fingerprint), ``checkpoints/`` and ``warm_start/`` of the Trainer, ``tokenizer.json``,
``trained/`` once only writing is left, and ``logs/`` of trackers. Logs are never removed: those of earlier runs become
``logs-1/`` and so on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from polyhead.files import LockedError, file_lock, replaced_folder, why_full, write_file
from polyhead_training.config import TrainingConfig
from polyhead_training.data.corpus import Corpus
from polyhead_training.data.sources import file_names
from polyhead_training.errors import ConfigError, StorageError
from polyhead_training.fitting.arguments import precision_of


class WorkingFolder:
    """Where a run keeps what it needs to continue.

    Args:
        output: the checkpoint that the run will write.

    Raises:
        ConfigError: `output` does not name a folder.
    """

    def __init__(self, output: Path) -> None:
        if output.name in ("", ".."):
            raise ConfigError(f"output {str(output)!r}: must name a new folder, as 'runs/reviews'")
        self.path = output.with_name(f"{output.name}.training")
        self.checkpoints = self.path / "checkpoints"
        self.warm_start = self.path / "warm_start"
        self.finished_warm_start = self.warm_start / "finished"
        self.tokenizer = self.path / "tokenizer.json"  # for other processes and for a resumed run
        self.logs = self.path / "logs"
        self._run = self.path / "run.json"
        self._trained = self.path / "trained"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder against other runs in this block. A killed run holds no lock.

        Its file is beside the folder, because the folder is removed and created again within a run.

        Raises:
            ConfigError: another run has it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.path.with_name(f".{self.path.name}.lock"), remove=True))
            except LockedError:
                raise ConfigError(
                    f"{self.path}: another run is writing here; wait for its end or name another output"
                ) from None
            except OSError:
                pass  # a file system without locks
            yield

    @contextmanager
    def explained_if_full(self) -> Iterator[None]:
        """Says which disk is full, what of the run is kept, and how it goes on, if writing fails in this block.

        Raises:
            StorageError: one line instead of a library's error.
        """
        try:
            yield
        except Exception as error:
            reason = why_full(error)
            if reason is None:
                raise
            scratch = Path(tempfile.gettempdir())
            folder = min((self.path.parent, scratch), key=lambda path: shutil.disk_usage(path).free)
            free = shutil.disk_usage(folder).free
            other = ", or set TMPDIR to another folder" if folder == scratch else ""
            raise StorageError(
                f"{folder}: {reason} ({free / 2**20:,.0f} MiB are free); {self._kept()}. Make room{other}; then "
                f"{'--resume goes on from there' if self._has_progress() else 'start again'}"
            ) from error

    def _kept(self) -> str:
        """What an error leaves. Half-written steps are removed."""
        if self._trained.exists():
            return f"the trained weights are kept in {self._trained}"
        for folder, of in ((self.checkpoints, ""), (self.warm_start, " of the warm start")):
            if (step := self.last_checkpoint(folder)) is not None:
                return f"the run is kept up to step {step.rpartition('-')[2]}{of}"
            if folder == self.checkpoints and self.finished_warm_start.exists():
                return "the finished warm start is kept"
        return "nothing of this run is kept yet"

    def check(self, *, resume: bool, restart: bool) -> None:
        """Makes sure that no unfinished run is lost, and that --resume has one to continue.

        Raises:
            ConfigError: says which option is needed.
        """
        if self.path.exists() and not self._run.exists() and (not self.path.is_dir() or self._parts()):
            raise ConfigError(f"{self.path}: holds something that is no training run; name another output")
        if resume and not self._run.exists():
            raise ConfigError(f"{self.path}: there is no unfinished run here; start without --resume")
        if self._has_progress() and not resume and not restart:
            raise ConfigError(
                f"{self.path}: there is an unfinished run here; continue it with --resume or delete it with --restart"
            )

    def begin(self, config: TrainingConfig, corpus: Corpus, *, processes: int, resume: bool) -> None:
        """Saves the fingerprint of a new run; makes sure that a resumed run still has the saved one.

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
        write_file(self._run, json.dumps(run, indent=2))

    def last_checkpoint(self, folder: Path) -> str | None:
        """The newest complete checkpoint of the Trainer. Newer incomplete ones are removed."""
        found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        while found and not _is_complete(found[-1]):
            shutil.rmtree(found.pop(), ignore_errors=True)
        return str(found[-1]) if found else None

    def keep_trained(self, trainer: Trainer) -> None:
        """Saves the trained model. From now on nothing is trained again, whatever happens to the rest of the run."""
        with replaced_folder(self._trained) as fresh:
            save_model(cast(nn.Module, trainer.model), str(fresh / "model.safetensors"))
            trainer.state.save_to_json(str(fresh / TRAINER_STATE_NAME))

    def load_trained(self, trainer: Trainer) -> bool:
        """Loads the saved trained model and its history into the trainer; false if there is none."""
        if not self._trained.exists():
            return False
        load_model(cast(nn.Module, trainer.model), self._trained / "model.safetensors")
        trainer.state = TrainerState.load_from_json(str(self._trained / TRAINER_STATE_NAME))
        return True

    def clear(self) -> None:
        """Removes the folder, or everything in it except logs."""
        if not self.path.exists():
            return
        for path in self._parts():
            if path != self._run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._run.unlink(missing_ok=True)  # last, because it marks the folder as a training run
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _parts(self) -> list[Path]:
        """Everything in the folder except logs."""
        return [path for path in self.path.iterdir() if path.name.partition("-")[0] != "logs"]

    def _has_progress(self) -> bool:
        return self._trained.exists() or any(
            next(folder.glob(pattern), None)
            for folder, pattern in ((self.checkpoints, "checkpoint-*"), (self.warm_start, "*"))
        )


def _is_complete(checkpoint: Path) -> bool:
    """The Trainer writes its state last."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def fingerprint(config: TrainingConfig, corpus: Corpus, processes: int) -> dict[str, Any]:
    """Everything that decides a run's weights: config, machine settings, digests of files. Can be written as JSON."""
    contents = {"the data": _digest_rows(corpus)}
    if config.warm_start is not None and config.warm_start.texts:
        files = [Path(name) for name in file_names(config.warm_start.texts)]
        contents["the text of warm_start.texts"] = _digest_files(file for file in files if file.is_file())
    if config.model.pretrained is not None:  # a hub name has no files here
        weights = sorted(Path(config.model.pretrained).glob("*.safetensors"))
        contents["the weights of model.pretrained"] = _digest_files(weights)
    return {
        "config": config.model_dump(mode="json", exclude={"output", "report"}),
        "machine": {
            "number of processes": processes,
            "precision": precision_of(config),
        },
        "contents": contents,
    }


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Compares the fingerprint of the run in `path` with the current one.

    Raises:
        ConfigError: names what changed.
    """
    old, new = (dict(_leaves(run["config"] | run["machine"])) for run in (before, now))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise ConfigError(
                f"{path}: cannot continue: {name} was {old.get(name)!r} and is {new.get(name)!r}; "
                "change it back or start again with --restart"
            )
    for name, digest in now["contents"].items():
        if before["contents"].get(name) != digest:
            raise ConfigError(f"{path}: cannot continue: {name} changed; change it back or start again with --restart")


def _digest_rows(corpus: Corpus) -> str:
    """A digest of the schema and of all training and validation rows."""
    digest = hashlib.sha256(json.dumps(corpus.schema.to_json()).encode())
    for split in (corpus.train, corpus.validation):
        for batch in split.rows.iter(1000):
            digest.update(json.dumps(batch["text"]).encode())
            digest.update(np.asarray(batch["labels"], dtype=np.float32).tobytes())
    return digest.hexdigest()


def _digest_files(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """A nested config as pairs of a name, such as ``training.epochs``, and a value."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in items:
            yield from _leaves(inner, f"{place}.{name}" if place else str(name))
    else:
        yield place, value
