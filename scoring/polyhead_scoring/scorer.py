"""The scorer: what an actor holds, one predictor, and what it does with a partition: read, score, write."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict

from polyhead.decode import DecodeOptions
from polyhead.encode import EncodedText
from polyhead.predictor import Predictor
from polyhead_scoring.answers import output_schema, output_table
from polyhead_scoring.errors import ClusterError, InputError
from polyhead_scoring.formats import FORMATS
from polyhead_scoring.job import Job, fingerprint
from polyhead_scoring.partition import Partition
from polyhead_scoring.rows import reason_against
from polyhead_scoring.run_folder import Done, RunFolder

BLOCK_TOKENS = 65_536  # are scored at once; the engine cuts its own micro-batches from them
CHUNK_BYTES = 1 << 20  # of text are tokenized at once, or one text
CHUNK_TEXTS = 1024
TRIES = 5  # of a partition, when processes or nodes die under it


class Task(BaseModel):
    """What a scorer needs to know, the same on every node.

    Attributes:
        checkpoint: its folder, as the nodes see it.
        output: folder, path or URI.
        kept: columns of the input, serialized.
        threads: that the predictor computes with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: Job
    checkpoint: Path
    output: str
    kept: bytes
    threads: int


class Scorer:
    """One predictor, and its way from a partition to its output.

    Raises:
        InputError: the checkpoint on this node is another one.
    """

    def __init__(self, task: Task) -> None:
        import torch

        os.environ["RAYON_NUM_THREADS"] = str(task.threads)  # of the tokenizer
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if task.threads > 1 else "false"
        torch.set_num_threads(task.threads)
        self.job = task.job
        if fingerprint(task.checkpoint) != self.job.checkpoint:
            raise InputError(f"{task.checkpoint}: is another checkpoint on this node than where the run was started")
        self.predictor = Predictor.load(task.checkpoint, self.job.device, self.job.precision)
        self.folder = RunFolder(task.output)
        self.kept = pyarrow.ipc.read_schema(pyarrow.py_buffer(task.kept))
        self.output = output_schema(self.kept, self.predictor.schema, self.job.options, self.job.prefix)

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[str]]:
        """Scores partitions as Ray Data hands them over, as JSON; gives what is `Done`."""
        partitions = [Partition.model_validate_json(text) for text in batch["partition"]]
        return {"done": [self.score(partition).model_dump_json() for partition in partitions]}

    def score(self, partition: Partition) -> Done:
        """Writes a partition's output, then the note that it is there.

        Each takes its place by a rename. A task that is done again writes the same once more; one that is killed leaves
        nothing that anyone reads.
        """
        if self.folder.count_try(partition) > TRIES:
            raise ClusterError(
                f"{partition.file}: rows {partition.first_row} and on, {partition.rows} of them: {TRIES} processes "
                "died over them; give actors more memory, or make --partition-tokens smaller with --restart"
            )
        rows = FORMATS[self.job.format].read(partition, self.job.text_column, self.kept)
        if len(rows.texts) != partition.rows:
            raise InputError(
                f"{partition.file}: {len(rows.texts)} rows lie where {partition.rows} did: the file changed; "
                "start anew with --restart"
            )
        answers = list(answer_texts(self.predictor, rows.texts, self.job.options))
        table = output_table(rows.kept, answers, self.output, self.predictor.schema, self.job.prefix)
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        name = f"{partition.name}.parquet"
        (self.folder.place / name).write(content)
        done = Done(
            number=partition.number,
            rows=len(answers),
            errors=sum("error" in answer for answer in answers),
            tokens=sum(answer.get("token_count", 0) for answer in answers),
            precision=self.predictor.precision,
            output=name,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        (self.folder.done / f"{partition.name}.json").write(done.model_dump_json().encode())
        return done


def answer_texts(predictor: Predictor, texts: Sequence[Any], options: DecodeOptions) -> Iterator[dict[str, Any]]:
    """An answer a text, in order, scored in blocks cut by tokens; what is no text gets its error."""
    block: list[EncodedText] = []
    tokens = 0
    for encoded in _encode(predictor, texts):
        if tokens + encoded.token_count > BLOCK_TOKENS:
            yield from predictor.decode(block, predictor.score(block), options)
            block, tokens = [], 0
        block.append(encoded)
        tokens += encoded.token_count
    yield from predictor.decode(block, predictor.score(block), options)


def _encode(predictor: Predictor, texts: Sequence[Any]) -> Iterator[EncodedText]:
    chunk: list[Any] = []
    size = 0
    for text in texts:
        more = len(text) if isinstance(text, str | bytes) else 0
        if chunk and (size + more > CHUNK_BYTES or len(chunk) == CHUNK_TEXTS):
            yield from _encode_chunk(predictor, chunk)
            chunk, size = [], 0
        chunk.append(text)
        size += more
    yield from _encode_chunk(predictor, chunk)


def _encode_chunk(predictor: Predictor, texts: Sequence[Any]) -> list[EncodedText]:
    reasons = [reason_against(text) for text in texts]
    readable = iter(predictor.encode([text for text, reason in zip(texts, reasons, strict=True) if reason is None]))
    return [next(readable) if reason is None else EncodedText((), error=reason) for reason in reasons]
