"""The fingerprint of a run: all that its weights depend on, so that it never goes on as another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyhead_training.config import TrainingConfig
from polyhead_training.data.corpus import Corpus
from polyhead_training.data.rows import open_files
from polyhead_training.errors import ConfigError
from polyhead_training.fitting.arguments import precision_of


def fingerprint(config: TrainingConfig, corpus: Corpus, processes: int) -> dict[str, Any]:
    """The config, what the machine makes of it, and digests of what it names; JSON-able."""
    contents = {"the data": _digest_rows(corpus)}
    if config.warm_start is not None and config.warm_start.texts:
        files = [Path(table.name) for table in open_files(config.warm_start.texts)]
        contents["the text of warm_start.texts"] = _digest_files(files)
    if config.model.pretrained is not None:  # of a hub name there are no files
        weights = sorted(Path(config.model.pretrained).glob("*.safetensors"))
        contents["the weights of model.pretrained"] = _digest_files(weights)
    return {
        "config": config.model_dump(mode="json", exclude={"output"}),
        "machine": {"number of processes": processes, "precision": precision_of(config.training)},
        "contents": contents,
    }


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Compares the fingerprint of the run in `path` with that of now.

    Raises:
        ConfigError: names what changed.
    """
    old, new = (dict(_leaves(run["config"] | run["machine"])) for run in (before, now))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise ConfigError(
                f"{path}: cannot go on: {name} was {old.get(name)!r} and is {new.get(name)!r}; "
                "change it back or start anew with --restart"
            )
    for name, digest in now["contents"].items():
        if before["contents"].get(name) != digest:
            raise ConfigError(f"{path}: cannot go on: {name} changed; change it back or start anew with --restart")


def _digest_rows(corpus: Corpus) -> str:
    """Of the schema and of all rows to train on and to validate with."""
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
    """A nested config as ``training.epochs`` and the like."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in items:
            yield from _leaves(inner, f"{place}.{name}" if place else str(name))
    else:
        yield place, value
