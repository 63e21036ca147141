"""A run from beginning to end: what is to be scored, the plan, the partitions, the manifest."""

from __future__ import annotations

import time

import pyarrow
from rich.console import Console

from polyhead.checkpoint import Checkpoint
from polyhead_scoring.answers import output_schema
from polyhead_scoring.errors import InputError
from polyhead_scoring.formats import FORMATS
from polyhead_scoring.job import Job
from polyhead_scoring.partition import Limits, Partition, bytes_per_token
from polyhead_scoring.progress import ScoringProgress
from polyhead_scoring.request import Request, Summary, prepare
from polyhead_scoring.run_folder import RunFolder

SAMPLE_ROWS = 500  # whose tokens are counted before partitions are cut


def run(request: Request, address: str, console: Console) -> Summary:
    """Scores what is not yet scored.

    Args:
        address: of Ray, as `cluster.connected` takes it.

    Raises:
        PolyheadError: says what to do; what is finished stays finished.
    """
    if address.startswith("ray://"):
        return _run_inside(request, address)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    job, checkpoint, folder = prepare(request)
    with folder.lock():
        manifest = folder.begin(job, restart=request.restart)
        if manifest is not None:
            say(f"{folder.name}: is finished already")
            return Summary(manifest)
        from polyhead_scoring.bulk import score_all  # imports Ray: seconds for which a typo need not wait
        from polyhead_scoring.cluster import connected

        with connected(address):
            partitions, kept = folder.read_plan() or make_plan(job, checkpoint, folder)
            done = folder.finished()
            if done:
                say(f"going on: {len(done)} of {len(partitions)} partitions are done")
            todo = [partition for partition in partitions if partition.number not in done]
            started, rows = time.monotonic(), 0
            with ScoringProgress(partitions, list(done), console) as progress:
                for finished in score_all(request, job, kept, folder.name, todo):
                    done[finished.number] = finished
                    rows += finished.rows
                    progress.add(finished)
            seconds = time.monotonic() - started
        return Summary(folder.finish(job, checkpoint.schema, partitions, done), rows, seconds)


def make_plan(job: Job, checkpoint: Checkpoint, folder: RunFolder) -> tuple[list[Partition], pyarrow.Schema]:
    """All partitions, and the columns to be kept; notes them in the folder.

    Raises:
        ScoringError: a file cannot be read, or lacks a column.
    """
    from polyhead_scoring.bulk import survey_all

    files = [file.name for file in job.inputs if file.size]
    if not files:
        raise InputError("the input files are empty")
    sample = FORMATS[job.format].sample(files[0], job.text_column, SAMPLE_ROWS)
    limits = Limits(
        tokens=job.partition_tokens,
        max_length=checkpoint.spec.max_length,
        bytes_per_token=bytes_per_token(sample, checkpoint.tokenizer),
    )
    surveyed = survey_all(job, limits)
    kept = kept_columns(job, FORMATS[job.format].schema_of([found for _, found in surveyed]))
    output_schema(kept, checkpoint.schema, job.options, job.prefix)
    cut = [partition for partitions, _ in surveyed for partition in partitions]
    numbered = [partition.model_copy(update={"number": number}) for number, partition in enumerate(cut)]
    folder.write_plan(numbered, kept)
    return numbered, kept


def kept_columns(job: Job, columns: pyarrow.Schema) -> pyarrow.Schema:
    """The columns of the input that the output has too.

    Raises:
        InputError: the input lacks one, or the text column.
    """
    for name in (job.text_column, *(job.keep or ())):
        if name not in columns.names:
            raise InputError(f"column {name!r} is in no input file; there are {', '.join(columns.names) or 'none'}")
    return columns if job.keep is None else pyarrow.schema([columns.field(name) for name in job.keep])


def _run_inside(request: Request, address: str) -> Summary:
    """Through Ray's client, which cannot carry Ray Data: all of it runs on a node, to which paths then belong."""
    from polyhead_scoring.cluster import connected, naming_errors, run_on_a_node

    with connected(address), naming_errors():
        summary: Summary = run_on_a_node(_run_here, request)
    return summary


def _run_here(request: Request) -> Summary:
    return run(request, "", Console())
