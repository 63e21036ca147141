"""One file scored: answers go to the journal first; the output is written from it and appears whole, at the end."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from polyhead_client.bulk.answers import Question, answer_rows
from polyhead_client.bulk.journal import Journal
from polyhead_client.bulk.outputs import AnswerColumns, open_output, plain, records
from polyhead_client.bulk.progress import Meter, Reporter
from polyhead_client.bulk.row import Row
from polyhead_client.bulk.sources import Block, Source, format_of, open_source
from polyhead_client.client import Client
from polyhead_client.errors import UsageError
from polyhead_client.prediction import Prediction
from polyhead_client.tables import import_library

OUTPUT, ERRORS = "output", "errors.jsonl"  # in the journal's folder, until they are whole
Report = Callable[[Meter], AbstractContextManager[Reporter]]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done.

    Attributes:
        source, output: paths, whose endings say the formats.
        text_column: what is scored.
        question: what is asked.
        prefix: put before the names of the new columns.
        restart: begins anew, and replaces an output that is there.
        model_version: as the client was told.
    """

    source: Path
    output: Path
    text_column: str
    question: Question
    prefix: str = ""
    restart: bool = False
    model_version: str = ""

    @property
    def errors(self) -> Path:
        """Where the rows go that could not be scored."""
        return self.output.with_suffix(".errors.jsonl")

    @property
    def journal(self) -> Path:
        """The folder that holds what is done until all is."""
        return self.output.with_name(self.output.name + ".partial")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many rows went where; `resumed` were answered by earlier runs."""

    scored: int
    spoiled: int
    resumed: int


def score_file(client: Client, job: Job, report: Report) -> Outcome:
    """Scores all rows, or those that an earlier run of the same job left.

    Raises:
        PolyheadClientError: a bad argument, or no answer from the server; what is done stays in the journal.
        OSError: a file cannot be read or written.
    """
    kind = _check_paths(job)
    state = _state(job.source)
    source = open_source(job.source, job.text_column)
    schema = client.schema()
    columns = AnswerColumns(schema, job.question.top_k, job.prefix)
    columns.check(source.columns or ())
    identity = {
        "input": state,
        "output format": kind,
        "text column": job.text_column,
        "prefix": job.prefix,
        "top_k": job.question.top_k,
        "threshold": job.question.threshold,
        "model": client.model,
        "model version": job.model_version,
        "model's heads": dataclasses.asdict(schema),
    }
    with Journal(job.journal, identity, job.restart) as journal:
        resumed = journal.rows
        _answer(client, job, source, columns, journal, report)
        _check_unchanged(job, state)
        outcome = _write(kind, source, columns, journal, resumed, report)
        _check_unchanged(job, state)
        _publish(job, outcome)
        journal.remove()
    return outcome


def _check_paths(job: Job) -> str:
    kind = format_of(job.output)
    if not job.output.parent.is_dir():
        raise UsageError(f"{job.output.parent}: no such folder")
    for path in (job.output, job.errors):
        if path.resolve() == job.source.resolve():
            raise UsageError(f"{path} is the input; give the output another name")
    if job.output.exists() and not (job.restart or job.journal.exists()):
        raise UsageError(f"{job.output} is there already; take another name, or replace it with --restart")
    if kind == "parquet":
        import_library("pyarrow.parquet")
    return kind


def _state(path: Path) -> dict[str, Any]:
    try:
        found = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    return {"path": str(path.resolve()), "bytes": found.st_size, "changed_ns": found.st_mtime_ns}


def _check_unchanged(job: Job, state: dict[str, Any]) -> None:
    if _state(job.source) != state:
        raise UsageError(f"{job.source} was changed while it was scored; begin anew with --restart")


def _answer(client: Client, job: Job, source: Source, columns: AnswerColumns, journal: Journal, report: Report) -> None:
    rows = source.rows()
    done = 0
    for row in islice(rows, journal.rows):
        done = row.end
    with report(Meter("scoring", source.total, journal.rows, done)) as reporter:
        for row, prediction in answer_rows(client, _checked(rows, columns), job.question):
            journal.append(prediction)
            reporter.advance(row.end)


def _checked(rows: Iterator[Row], columns: AnswerColumns) -> Iterator[Row]:
    """Rows of JSON each have their own fields, which the answers' must not replace."""
    names = set(columns.names)
    for row in rows:
        if row.reason is None and row.fields is not None and (taken := names & row.fields.keys()):
            reason = f"has a field {min(taken)!r} as the output has; give the new ones another --prefix"
            yield dataclasses.replace(row, text=None, reason=reason)
        else:
            yield row


def _write(
    kind: str, source: Source, columns: AnswerColumns, journal: Journal, resumed: int, report: Report
) -> Outcome:
    answers = journal.answers()
    rows = scored = 0
    output = open_output(journal.folder / OUTPUT, kind, source, columns)
    try:
        with (
            (journal.folder / ERRORS).open("w", encoding="utf-8", newline="\n") as errors,
            report(Meter("writing", journal.rows)) as reporter,
        ):
            for block in source.blocks():
                found = list(enumerate(islice(answers, len(block.rows))))
                rows += len(block.rows)
                if len(found) < len(block.rows):
                    break
                kept = [(place, prediction) for place, prediction in found if prediction.error is None]
                output.write(block, kept)
                scored += len(kept)
                for place, prediction in found:
                    if prediction.error is not None:
                        errors.write(_error_line(block, place, prediction))
                    reporter.advance(block.rows[place].number)
        if rows != journal.rows:
            raise UsageError(f"{journal.folder} does not have the input's rows; begin anew with --restart")
    finally:
        output.close()
    return Outcome(scored, rows - scored, resumed)


def _error_line(block: Block, place: int, prediction: Prediction) -> str:
    row = block.rows[place]
    described: dict[str, Any] = {"row": row.number}
    if row.line is not None:
        described["line"] = row.line
    described["reason"] = prediction.error
    fields = row.fields
    if block.table is not None:
        try:
            (fields,) = records(block, [(place, prediction)])
        except UnicodeDecodeError:
            fields = None
    if fields is not None:
        described["input"] = fields
    return json.dumps(described, default=plain) + "\n"


def _publish(job: Job, outcome: Outcome) -> None:
    """Gives the files their names; a run that is killed in between does it again."""
    for name in (OUTPUT, ERRORS):
        with (job.journal / name).open("rb") as file:
            os.fsync(file.fileno())
    if outcome.spoiled:
        os.replace(job.journal / ERRORS, job.errors)
    else:
        (job.journal / ERRORS).unlink()
        job.errors.unlink(missing_ok=True)  # an earlier job's
    os.replace(job.journal / OUTPUT, job.output)
