"""The request: what a caller asks for, and what is made of it before anything is scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead.checkpoint import Checkpoint, read_checkpoint
from polyhead.decode import DecodeOptions
from polyhead_scoring.job import Job, describe_inputs, fingerprint
from polyhead_scoring.place import absolute
from polyhead_scoring.run_folder import RunFolder


@dataclass(frozen=True)
class Request:
    """What the command line says, but where Ray is.

    Attributes:
        data: files, globs, folders or URIs.
        keep: columns of the input that the output has too; None for all.
        actors: None for as many as the cluster has room for.
        restart: throw away what lies in the output.
    """

    checkpoint: Path
    data: tuple[str, ...]
    output: str
    text_column: str = "text"
    keep: tuple[str, ...] | None = None
    prefix: str = "predicted_"
    top_k: int | None = None
    threshold: float | None = None
    partition_tokens: int = 500_000
    actors: int | None = None
    cpus_per_actor: float = 1
    gpus_per_actor: float = 0
    precision: str = "auto"
    restart: bool = False


@dataclass(frozen=True)
class Summary:
    """What a run came to: the manifest, and what this run itself did in which time."""

    manifest: dict[str, Any]
    rows: int = 0
    seconds: float = 0.0


def prepare(request: Request) -> tuple[Job, Checkpoint, RunFolder]:
    """Reads the checkpoint and looks for the input files.

    Raises:
        PolyheadError: the checkpoint is damaged, or there is nothing to score.
    """
    checkpoint = read_checkpoint(request.checkpoint)
    job = Job(
        checkpoint=fingerprint(request.checkpoint),
        inputs=describe_inputs(list(request.data)),
        text_column=request.text_column,
        keep=request.keep,
        prefix=request.prefix,
        options=DecodeOptions(top_k=request.top_k, threshold=request.threshold),
        partition_tokens=request.partition_tokens,
        device="cuda" if request.gpus_per_actor else "cpu",
        precision=request.precision,
    )
    return job, checkpoint, RunFolder(absolute(request.output))
