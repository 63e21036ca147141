"""The request has all options of the command; the job has those that decide the output. A run resumes only its job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from polyhead_rows.place import split_part
from polyhead_rows.table_file import ReadOptions
from polyhead_scoring import ScoringError
from polyhead_scoring.server_answers import ServerOptions
from polyhead_scoring.storage import Place
from polyhead_scoring.texts import TextSource

LONGEST_SHOWN = 100  # characters of a value in a message
FILE_TOKENS, FOLDER_TOKENS = 50_000, 500_000  # per partition, by default


class ScoringOptions(BaseModel):
    """What a request and its job have in common: the options that decide the output.

    Attributes:
        keep: columns of the input that the output keeps; None for all.
        prefix: stands before the names of the answers' columns.
        partition_tokens: None for 50,000 with a file as the output, and 500,000 with a folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    read: ReadOptions = ReadOptions()
    keep: tuple[str, ...] | None = None
    prefix: str = ""
    top_k: int | None = None
    threshold: float | None = None
    reject_below: float | None = None
    private: bool = False
    partition_tokens: int | None = None

    @property
    def decoding(self) -> dict[str, Any]:
        """The options of a request to a server, and of `polyhead.decode.DecodeOptions`."""
        return self.model_dump(include={"top_k", "threshold", "reject_below", "private"})


class Request(ScoringOptions):
    """What to score, with what, and where to.

    Attributes:
        data: files, globs, folders, URIs, or ``-`` for standard input.
        output: a file, or a folder or URI of Parquet parts.
        text_column: None for the columns of the model's fields or, if it has none, ``text``.
        checkpoint: None if a server answers.
        device: ``cpu`` or ``cuda``.
        server: None if the engine answers.
        address: of Ray; None for the engine in this process.
        actors: None uses as many as the cluster has room for.
        cpus_per_actor: None takes one, or with a GPU the cores beside it; see `cluster.default_cpus`.
        restart: throws away what earlier runs scored, and replaces the output.
        progress: whether to show it.
    """

    data: tuple[str, ...]
    output: str
    text_column: str | None = None
    checkpoint: Path | None = None
    device: str = "cpu"
    precision: str = "auto"
    server: ServerOptions | None = None
    address: str | None = None
    actors: int | None = None
    cpus_per_actor: float | None = None
    gpus_per_actor: float = 0
    restart: bool = False
    progress: bool = True


class InputFile(BaseModel):
    """A file to score, and its state when the run began.

    Attributes:
        changed_ns: time of the last change; None for standard input, and if an object store does not know it.
        sha256: of the content of standard input; None for files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size: int
    changed_ns: int | None
    sha256: str | None = None


class Job(TextSource, ScoringOptions):
    """Everything that decides what the output holds.

    Attributes:
        answers_from: the checkpoint's sha256, device and precision, or the server's model, version and heads.
    """

    inputs: tuple[InputFile, ...]
    partition_tokens: int
    answers_from: dict[str, Any]


def job_of(
    request: Request, inputs: tuple[InputFile, ...], answers_from: dict[str, Any], *, one_file: bool,
    fields: tuple[str, ...] = (),
) -> Job:  # fmt: skip
    """The job of a request.

    Args:
        one_file: the output is a file, not a folder.
        fields: of the model's template.
    """
    options = {name: getattr(request, name) for name in ScoringOptions.model_fields}
    options["partition_tokens"] = request.partition_tokens or (FILE_TOKENS if one_file else FOLDER_TOKENS)
    texts = TextSource.of(request.text_column, fields)
    return Job(**options, **texts.model_dump(), inputs=inputs, answers_from=answers_from)


def describe_file(name: str) -> InputFile:
    """Notes what a later run compares."""
    info = Place.of(split_part(name)[0]).info()
    return InputFile(name=name, size=info.size or 0, changed_ns=info.mtime_ns)


def check_same(before: Job, now: Job, folder: str) -> None:
    """Makes sure that a run continues as the job that it began as.

    Raises:
        ScoringError: names what changed.
    """
    old, new = _leaves(before), _leaves(now)
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            raise ScoringError(
                f"{folder}: cannot continue: {name} was {_shown(old.get(name))} and is {_shown(new.get(name))}; change "
                "it back, name another output, or throw away what is scored with --restart"
            )


def check_unchanged(inputs: tuple[InputFile, ...]) -> None:
    """Makes sure that no input file changed while it was scored.

    Raises:
        ScoringError: names the file.
    """
    for file in inputs:
        if file.sha256 is None and describe_file(file.name) != file:
            raise ScoringError(f"{file.name}: was changed while it was scored; begin anew with --restart")


def _leaves(job: Job) -> dict[str, Any]:
    leaves = job.model_dump(mode="json", exclude={"inputs", "read", "answers_from"}) | job.read.model_dump(mode="json")
    leaves["the source of answers"] = "--checkpoint" if "checkpoint" in job.answers_from else "--server"
    for name, value in job.answers_from.items():
        leaves |= {f"head {head['name']!r}": head for head in value} if name == "heads" else {name: value}
    leaves["the list of input files"] = [file.name for file in job.inputs]
    for file in job.inputs:
        leaves[f"the content of {file.name}"] = (file.size, file.changed_ns, file.sha256)
    return leaves


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"
