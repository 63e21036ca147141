"""Scores a partition: reads its rows, gets the answers, writes the part and then the note that it is done."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow
import pyarrow.parquet

from polyhead.errors import one_line
from polyhead_rows.answers import answer_fields, answer_table
from polyhead_rows.table_file import BadText
from polyhead_scoring import ScoringError
from polyhead_scoring.job import Job
from polyhead_scoring.partition import Part, Partition, PartReader
from polyhead_scoring.run_folder import Done, RunFolder

if TYPE_CHECKING:
    from polyhead.decode import DecodeOptions  # imports torch

CHUNK_CHARACTERS = 1 << 18  # of text are tokenized and scored at once, or one text
MOST_BAD_ROWS = 10_000  # that wait in memory for the answers before them

Answer = dict[str, Any]  # `heads`, `token_count` and `truncated`, or `error` alone, as in the wire contract
Heads = Sequence[Mapping[str, Any]]


class Answerer(Protocol):
    """Gives texts their answers: `EngineAnswers` or `server_answers.ServerAnswers`."""

    precision: str | None  # in which the answers are computed, if it is known
    longest_text: float  # bytes

    def answer(self, parts: Iterable[Sequence[str]]) -> Iterator[list[Answer]]:
        """The answers to the texts of each part, in their order."""


class EngineAnswers:
    """One predictor in this process. Texts are tokenized and scored in chunks, so that memory stays bounded.

    Args:
        threads: how many it uses; None uses all cores.
    """

    longest_text = math.inf

    def __init__(
        self, checkpoint: Path, device: str, precision: str, options: DecodeOptions, threads: int | None = None
    ) -> None:
        import torch  # a run with a server does not need it

        from polyhead.predictor import Predictor

        if threads is not None:
            os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizer
            os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
            torch.set_num_threads(threads)
        self.predictor = Predictor.load(checkpoint, device, precision)
        self.precision: str | None = self.predictor.precision
        self.options = options

    def answer(self, parts: Iterable[Sequence[str]]) -> Iterator[list[Answer]]:
        """The answers to the texts of each part, in their order."""
        are_last: deque[bool] = deque()  # of each chunk that was given out: whether its part ends with it

        def chunks() -> Iterator[list[str]]:
            for texts in parts:
                cut = list(_chunks(texts)) or [[]]
                are_last.extend([*[False] * (len(cut) - 1), True])
                yield from cut

        answers: list[Answer] = []
        for found in self.predictor.predict_chunks(chunks(), self.options):
            answers += found
            if are_last.popleft():
                yield answers
                answers = []


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and size + len(text) > CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk


def output_schema(kept: pyarrow.Schema, heads: Heads, job: Job) -> pyarrow.Schema:
    """All columns of the output: first the input columns that are kept, then the answers.

    Raises:
        ScoringError: two columns would have the same name, or Parquet cannot store a column.
    """
    answers = answer_fields(heads, job.top_k, job.prefix)
    if taken := sorted({field.name for field in answers} & set(kept.names)):
        raise ScoringError(
            f"the input already has a column {taken[0]!r}, as the answers do; give the answers' columns a --prefix, or "
            "name the columns to keep with --keep"
        )
    schema = pyarrow.schema([*kept, *answers], kept.metadata)
    try:
        _as_parquet(schema.empty_table())
    except pyarrow.ArrowException as error:
        raise ScoringError(
            f"Parquet, in which parts are kept, has no such column ({one_line(error)}); name the columns to keep "
            "with --keep"
        ) from error
    return schema


def _as_parquet(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


class Scorer:
    """Scores partitions with one answerer."""

    def __init__(self, job: Job, heads: Heads, kept: pyarrow.Schema, folder: RunFolder, answerer: Answerer) -> None:
        self.job = job
        self.heads = heads
        self.folder = folder
        self.answerer = answerer
        self.schema = output_schema(kept, heads, job)
        self.reader = PartReader(job, kept)

    def run(self, partitions: Iterable[Partition]) -> Iterator[Done]:
        """Scores partitions in their order; gives each when its part and its note are written."""
        waiting: deque[tuple[Partition, Part]] = deque()
        left = iter(partitions)
        more = True

        def texts() -> Iterator[Sequence[str]]:
            nonlocal more
            bad = 0
            for partition in left:
                part = self.reader.read(partition)
                part = replace(part, texts=[self._checked(text) for text in part.texts])
                waiting.append((partition, part))
                good = [text for text in part.texts if isinstance(text, str)]
                yield good
                bad += len(part.texts) - len(good)
                if bad > MOST_BAD_ROWS:
                    return
            more = False

        while more:
            for answers in self.answerer.answer(texts()):
                yield self._write(*waiting.popleft(), answers)

    def _checked(self, text: str | BadText) -> str | BadText:
        most = self.answerer.longest_text
        if isinstance(text, str) and 4 * len(text) > most and (size := len(text.encode())) > most:
            return BadText(f"the text has {size:,} bytes; a request takes at most {most:,}: cut the text")
        return text

    def _write(self, partition: Partition, part: Part, given: list[Answer]) -> Done:
        """Writes the part of a partition. Doing it again writes the same bytes."""
        left = iter(given)
        answers = [next(left) if isinstance(text, str) else {"error": text.reason} for text in part.texts]
        table = pyarrow.table(
            [*part.kept.columns, *answer_table(answers, self.heads, self.job.top_k, self.job.prefix).columns],
            schema=self.schema,
        )
        content = _as_parquet(table)
        failed = [place for place, answer in enumerate(answers) if "error" in answer]
        lines = [_error_line(partition.file, part, place, answers[place]["error"]) for place in failed]
        done = Done(
            number=partition.number,
            rows=len(answers),
            errors=len(failed),
            rejected=rejected_answers(answers),
            tokens=sum(answer.get("token_count", 0) for answer in answers),
            precision=self.answerer.precision,
            output=f"{partition.name}.parquet",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        self.folder.write_part(partition, content, "".join(lines).encode(), done)
        return done


def rejected_answers(answers: Iterable[Answer]) -> dict[str, int]:
    """By head that may reject: how many of its answers are no label."""
    found: dict[str, int] = {}
    for answer in answers:
        for name, head in answer.get("heads", {}).items():
            if "label" in head:
                found[name] = found.get(name, 0) + (head["label"] is None)
    return found


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
    return json.dumps(_strict(described), default=str) + "\n"


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {str(name): _strict(inner) for name, inner in value.items()}
        case list():
            return [_strict(inner) for inner in value]
    return value
