"""A run from beginning to end: the inputs, the job, the plan, the partitions, the output."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from rich.console import Console

from polyhead.files import replaced_file
from polyhead.identity import checkpoint_id
from polyhead.interface import Interface
from polyhead.terminal import printable
from polyhead_rows.place import STDIN, find_files, is_pipe
from polyhead_rows.progress import progress
from polyhead_rows.table_file import open_table
from polyhead_scoring import ScoringError
from polyhead_scoring.job import (
    InputFile,
    Job,
    Request,
    check_unchanged,
    describe_file,
    job_of,
)
from polyhead_scoring.partition import Columns, Limits, Partition, bytes_per_token, kept_schema, odd_texts, survey
from polyhead_scoring.run_folder import Done, RunFolder, is_one_file
from polyhead_scoring.scorer import Answerer, EngineAnswers, Heads, Scorer, output_schema
from polyhead_scoring.server_answers import ServerAnswers
from polyhead_scoring.storage import Place, absolute
from polyhead_scoring.texts import TextSource

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """The manifest, how many rows this run scored, and in how many seconds."""

    manifest: dict[str, Any]
    rows: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Model:
    """What a run has to know about the model before it begins.

    Attributes:
        answers_from: what identifies the model in the job.
        fields: of its text template; the columns of these names are scored.
        tokenizer: None if a server has it.
        server: the connected server, if one answers.
    """

    answers_from: dict[str, Any]
    heads: Heads
    max_length: int
    fields: tuple[str, ...] = ()
    tokenizer: Any = None
    server: ServerAnswers | None = None


def run(request: Request, console: Console) -> RunResult:
    """Scores all partitions that are not scored yet.

    Raises:
        PolyheadError, PolyheadClientError, TableError: one line says what to do; what is finished stays finished.
    """
    if request.address is not None and request.address.startswith("ray://"):
        return _run_inside(request)

    def say(line: str) -> None:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    names = find_files(request.data)
    folder = RunFolder(absolute(request.output), one_file=is_one_file(request.output))
    with folder.lock():
        folder.check_free(restart=request.restart)
        inputs = find_inputs(request, names, folder)
        try:
            if request.checkpoint is not None:
                check_columns(request, inputs)  # before torch is imported
            model = _server_model(request, say) if request.server is not None else checkpoint_model(request)
            with closing(model.server.client) if model.server is not None else nullcontext():
                job = job_of(request, inputs, model.answers_from, one_file=folder.one_file, fields=model.fields)
                if model.fields and not job.fields:
                    say(f"note: column {job.text_column!r} is scored as finished text; the model's fields are not used")
                manifest = folder.begin(job, restart=request.restart)
                if manifest is None:
                    return _score(request, job, model, folder, console, say)
                say(f"{folder.name}: is finished already")
                return RunResult(manifest)
        finally:
            folder.discard()
            if not folder.plan.exists():
                for copy in inputs:
                    if copy.sha256 is not None:
                        Path(copy.name).unlink(missing_ok=True)


def find_inputs(request: Request, names: Sequence[str], folder: RunFolder) -> tuple[InputFile, ...]:
    """The files to score, as they are now. Standard input is copied beside the output first.

    The run's own files are left out if they are in a folder, or match a glob, that is to be scored.

    Raises:
        ScoringError: standard input cannot be copied, or a file is also an output, or is a pipe.
    """
    found: list[InputFile] = []
    for name in names:
        if name == STDIN:
            continue
        if folder.holds(Place.of(name)):
            if name in request.data or not folder.is_ours:
                raise ScoringError(f"{name}: is the input, and the run would write to it; give the output another name")
        elif is_pipe(name):
            raise ScoringError(f"{name}: is a pipe, which cannot be read again; pipe it into polyhead-score - instead")
        else:
            found.append(describe_file(absolute(name)))
    if STDIN in names:
        found.insert(list(names).index(STDIN), _copy_stdin(folder, request.read.format or "jsonl"))
    return tuple(found)


def _copy_stdin(folder: RunFolder, format_name: str) -> InputFile:
    """A run that continues needs the same bytes again, so the content is part of the job."""
    if not folder.output.is_local:
        raise ScoringError("standard input: must be saved as a file first if the output is a URI")
    copy = Path(folder.output.beside(f".stdin.{format_name}").path)
    with replaced_file(copy) as part, part.open("wb+") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return InputFile(name=str(copy), size=copy.stat().st_size, changed_ns=None, sha256=digest)


def check_columns(request: Request, inputs: Sequence[InputFile]) -> None:
    """Makes sure that each file has the columns of the text, as far as a file names its columns.

    Raises:
        CheckpointError: there is no checkpoint.
        ScoringError, TableError: names the file and the column.
    """
    assert request.checkpoint is not None
    texts = TextSource.of(request.text_column, Interface.of_checkpoint(request.checkpoint).fields)
    for file in inputs:
        texts.check_columns(open_table(file.name, request.read))


def checkpoint_model(request: Request) -> Model:
    """Reads the checkpoint, for the engine here or on Ray."""
    from polyhead.checkpoint import read_checkpoint  # imports torch

    assert request.checkpoint is not None
    checkpoint = read_checkpoint(request.checkpoint)
    answers_from = {
        "checkpoint": checkpoint_id(request.checkpoint), "device": request.device, "precision": request.precision,
    }  # fmt: skip
    template = checkpoint.spec.template
    fields = () if template is None else template.fields
    read = checkpoint.spec.windows.reach
    return Model(answers_from, checkpoint.schema.to_json(), read, fields, checkpoint.tokenizer)


def _server_model(request: Request, say: Say) -> Model:
    assert request.server is not None
    server = ServerAnswers(request.server, request.decoding, say)
    answers_from = {"model": request.server.model, "model version": request.server.version, "heads": server.heads}
    fields = tuple(getattr(server.schema, "fields", ()))
    return Model(answers_from, server.heads, server.schema.max_length, fields, server=server)


def _score(request: Request, job: Job, model: Model, folder: RunFolder, console: Console, say: Say) -> RunResult:
    with _ray(request):
        partitions, kept = folder.read_plan(job) or make_plan(request, job, model, folder, console)
        schema = output_schema(kept, model.heads, job)
        if not model.fields and (fault := odd_texts(job)) is not None:
            say(f"note: {fault}; --text-column names another column")
        done = folder.finished()
        if done:
            say(f"continuing: {len(done)} of {len(partitions)} partitions are done")
        todo = [partition for partition in partitions if partition.number not in done]
        tokens = {partition.number: partition.tokens for partition in partitions}
        before = sum(tokens[number] for number in done)
        started, rows, errors = time.monotonic(), 0, 0
        with progress(
            "scoring", sum(tokens.values()), unit="tokens", done=before, shown=request.progress, console=console
        ) as shown:
            for finished in score_partitions(request, job, model, kept, folder, todo):
                done[finished.number] = finished
                rows, errors = rows + finished.rows, errors + finished.errors
                shown.advance(tokens[finished.number], rows=rows, errors=errors)
        seconds = time.monotonic() - started
    check_unchanged(job.inputs)
    return RunResult(folder.finish(job, model.heads, schema, partitions, done), rows, seconds)


def _ray(request: Request) -> AbstractContextManager[None]:
    if request.address is None:
        return nullcontext()
    try:
        from polyhead_scoring.cluster import connected  # imports Ray, which takes seconds
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise ScoringError("--address needs Ray; in the project folder: pip install './scoring[ray]'") from None
    return connected(request.address)


def make_plan(
    request: Request, job: Job, model: Model, folder: RunFolder, console: Console
) -> tuple[list[Partition], pyarrow.Schema]:
    """All partitions, and the columns that the output keeps; notes them in the folder.

    Raises:
        ScoringError, TableError: a file cannot be read, or lacks a column.
    """
    limits = Limits(tokens=job.partition_tokens, max_length=model.max_length)
    if model.tokenizer is not None:
        limits = limits.model_copy(update={"bytes_per_token": bytes_per_token(job, model.tokenizer)})
    found: list[tuple[list[Partition], Columns]]
    if request.address is not None:
        from polyhead_scoring.cluster import survey_all

        found = survey_all(job, limits)
    else:
        with progress("reading", 0, shown=request.progress, console=console) as shown:
            found = [survey(file, job, limits, shown.advance) for file in job.inputs]
    kept = kept_schema(job, [columns for _, columns in found])
    output_schema(kept, model.heads, job)  # before anything is scored
    cut = [partition for partitions, _ in found for partition in partitions]
    numbered = [partition.model_copy(update={"number": number}) for number, partition in enumerate(cut)]
    folder.write_plan(numbered, kept)
    return numbered, kept


def score_partitions(
    request: Request, job: Job, model: Model, kept: pyarrow.Schema, folder: RunFolder, todo: Sequence[Partition]
) -> Iterator[Done]:
    """Scores partitions with the server, the engine here, or Ray; each is noted in the folder when it is given."""
    if request.address is not None:
        from polyhead_scoring.cluster import score_all

        return score_all(request, job, model.heads, kept, folder, todo)
    answerer: Answerer
    if model.server is not None:
        answerer = model.server
    else:
        from polyhead.decode import DecodeOptions  # imports torch

        assert request.checkpoint is not None
        options = DecodeOptions(**job.decoding)
        answerer = EngineAnswers(request.checkpoint, request.device, request.precision, options)
    return Scorer(job, model.heads, kept, folder, answerer).run(todo)


def _run_inside(request: Request) -> RunResult:
    """Ray Data does not work through Ray's client, so the whole run happens on a node. Paths are paths on that node."""
    if STDIN in request.data:
        raise ScoringError(f"standard input: cannot be read on the nodes of {request.address}; save it as a file first")
    with _ray(request):
        from polyhead_scoring.cluster import run_on_a_node

        return run_on_a_node(lambda inner: run(inner, Console(stderr=True)), request.model_copy(update={"address": ""}))
