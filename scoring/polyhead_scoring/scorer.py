"""A partition's way: its rows are read, the texts answered, and the part and the note that it is done are written."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet

from polyhead_rows.answers import answer_fields, answer_table
from polyhead_rows.table_file import BadText
from polyhead_scoring import ScoringError
from polyhead_scoring.job import Job
from polyhead_scoring.partition import Part, Partition, PartReader
from polyhead_scoring.run_folder import Done, RunFolder

Answer = dict[str, Any]  # `heads`, `token_count` and `truncated`, or `error` alone, as in the wire contract
Heads = Sequence[Mapping[str, Any]]


class Answerer(Protocol):
    """Gives texts their answers: `engine_answers.EngineAnswers` or `server_answers.ServerAnswers`."""

    precision: str | None  # in which the answers are computed, if it is known

    def answer(self, parts: Iterable[Sequence[str | BadText]]) -> Iterator[list[Answer]]:
        """The answers to the texts of each part, in their order."""


def output_schema(kept: pyarrow.Schema, heads: Heads, job: Job) -> pyarrow.Schema:
    """All columns of the output: those kept of the input, then the answers.

    Raises:
        ScoringError: two columns would have one name.
    """
    answers = answer_fields(heads, job.top_k, job.prefix)
    if taken := sorted({field.name for field in answers} & set(kept.names)):
        raise ScoringError(
            f"the input already has a column {taken[0]!r}, as the answers do; give the answers' columns a --prefix, or "
            "name the columns to keep with --keep"
        )
    return pyarrow.schema([*kept, *answers], kept.metadata)


class Scorer:
    """Scores partitions with one answerer."""

    def __init__(self, job: Job, heads: Heads, kept: pyarrow.Schema, folder: RunFolder, answerer: Answerer) -> None:
        self.job = job
        self.heads = heads
        self.folder = folder
        self.answerer = answerer
        self.schema = output_schema(kept, heads, job)
        self.reader = PartReader(job.read, job.text_column, kept)

    def run(self, partitions: Iterable[Partition]) -> Iterator[Done]:
        """Scores partitions in their order; gives each when its part and its note are written."""
        waiting: deque[tuple[Partition, Part]] = deque()

        def texts() -> Iterator[Sequence[str | BadText]]:
            for partition in partitions:
                part = self.reader.read(partition)
                waiting.append((partition, part))
                yield part.texts

        for answers in self.answerer.answer(texts()):
            yield self._write(*waiting.popleft(), answers)

    def _write(self, partition: Partition, part: Part, answers: list[Answer]) -> Done:
        """Writes the part of a partition. Doing it again writes the same bytes."""
        table = pyarrow.table(
            [*part.kept.columns, *answer_table(answers, self.heads, self.job.top_k, self.job.prefix).columns],
            schema=self.schema,
        )
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        failed = [place for place, answer in enumerate(answers) if "error" in answer]
        lines = [_error_line(partition.file, part, place, answers[place]["error"]) for place in failed]
        done = Done(
            number=partition.number,
            rows=len(answers),
            errors=len(failed),
            tokens=sum(answer.get("token_count", 0) for answer in answers),
            precision=self.answerer.precision,
            output=f"{partition.name}.parquet",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        self.folder.write_part(partition, content, "".join(lines).encode(), done)
        return done


def _error_line(file: str, part: Part, place: int, reason: str) -> str:
    row = part.rows[place]
    described: dict[str, Any] = {"file": file, "row": row.number}
    if row.line is not None:
        described["line"] = row.line
    described["reason"] = reason
    if row.fields is None:
        described["raw"] = row.raw
    else:
        try:
            kept = part.kept.slice(place, 1).to_pylist()[0] if row.line is None else {}
        except UnicodeDecodeError:  # a string column of a broken writer may hold what is not UTF-8
            kept = {}
        described["input"] = kept | row.fields
    return json.dumps(described, default=str) + "\n"
