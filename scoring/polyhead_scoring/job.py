"""The job: all that decides what the output holds, as it is recorded; a run goes on only as what it began as."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from polyhead.decode import DecodeOptions
from polyhead_scoring.errors import InputError, OutputError
from polyhead_scoring.place import Place, absolute, input_files

FORMATS = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
FINGERPRINTED = ("config.json", "model.safetensors", "tokenizer.json")


class InputFile(BaseModel):
    """A file to be scored, as it was when the run began."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size: int
    changed_ns: int | None  # an object store need not know


class Job(BaseModel):
    """What is scored, with what, and how.

    Attributes:
        checkpoint: sha256 of what the answers depend on.
        keep: columns of the input that the output has too; None for all.
        partition_tokens: a partition's size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    inputs: tuple[InputFile, ...]
    text_column: str
    keep: tuple[str, ...] | None
    prefix: str
    options: DecodeOptions
    partition_tokens: int = Field(ge=1)
    device: str
    precision: str

    @property
    def format(self) -> str:
        """What the input files are."""
        return format_of([file.name for file in self.inputs])


def fingerprint(checkpoint: Path) -> str:
    """The sha256 of a checkpoint's config, weights and tokenizer."""
    digest = hashlib.sha256()
    for name in FINGERPRINTED:
        with (checkpoint / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def describe_inputs(names: list[str]) -> tuple[InputFile, ...]:
    """The files that paths, globs, folders and URIs stand for.

    Raises:
        InputError: there is none, or they are not of one known kind.
    """
    files = [absolute(file) for file in input_files(names)]
    format_of(files)
    infos = [Place.of(file).info() for file in files]
    return tuple(
        InputFile(name=file, size=info.size, changed_ns=info.mtime_ns) for file, info in zip(files, infos, strict=True)
    )


def format_of(files: list[str]) -> str:
    """The one format of all files.

    Raises:
        InputError: they have several, or one that is not known.
    """
    kinds = {Path(file).suffix.lower() for file in files}
    if len(kinds) != 1 or not kinds <= FORMATS.keys():
        raise InputError(
            f"input files must be of one kind, {', '.join(FORMATS)}; found are {', '.join(sorted(kinds)) or 'none'}"
        )
    return FORMATS[kinds.pop()]


def check_same(before: Job, now: Job, folder: str) -> None:
    """Makes sure that a run goes on as what it began as.

    Raises:
        OutputError: names what changed.
    """
    old, new = _leaves(before), _leaves(now)
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            raise OutputError(
                f"{folder}: cannot go on: {name} was {old.get(name)!r} and is {new.get(name)!r}; change it back, name "
                "another output, or throw away what is scored with --restart"
            )


def _leaves(job: Job) -> dict[str, Any]:
    leaves = job.model_dump(mode="json", exclude={"inputs", "options"}) | job.options.model_dump()
    leaves["the list of input files"] = [file.name for file in job.inputs]
    for file in job.inputs:
        leaves[f"the size and time of {file.name}"] = (file.size, file.changed_ns)
    return leaves
