"""Ray: connects to it, runs the survey and the scoring on it, and translates its errors. Imports Ray."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

# Ray reads these when it is imported. They turn off its usage reports and its hints about settings.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import pyarrow
import ray
import ray.data
from ray.exceptions import RayError

from polyhead.decode import DecodeOptions
from polyhead.errors import PolyheadError, one_line
from polyhead.identity import checkpoint_id
from polyhead.interrupt import interruptible
from polyhead_rows.errors import TableError
from polyhead_scoring import ScoringError
from polyhead_scoring.job import Job, Request
from polyhead_scoring.partition import Columns, Limits, Partition, survey
from polyhead_scoring.run_folder import Done, RunFolder
from polyhead_scoring.scorer import EngineAnswers, Heads, Scorer

CONNECT_S = 10.0
CPUS_PER_GPU = 8
TRIES = 5  # of one partition, if processes or nodes die while they score it

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Ray at an address, until the block's end.

    Args:
        address: ``local`` (a Ray on this machine's cores, which starts here and ends with the block), ``auto`` (the
            cluster that this machine belongs to, or that RAY_ADDRESS names), ``host:port`` or ``ray://host:port``;
            empty inside a task, because a task is already connected.

    Raises:
        ScoringError: no Ray answers there.
    """
    if not address:
        yield
        return
    _check_reachable(address)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=address.startswith("ray://"), **own)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[-1]  # below it is the server's traceback
        raise ScoringError(f"--address {address}: no Ray answers there ({cause})") from error
    try:
        with interruptible():  # Ray has set a handler of its own for SIGTERM
            yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes, and then ends the process."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise ScoringError(f"--address {address}: nothing answers there ({error})") from error


def run_on_a_node(function: Callable[[Argument], Result], argument: Argument) -> Result:
    """Calls a function in a task of the cluster."""
    with naming_errors():
        result: Result = ray.get(ray.remote(num_cpus=0, max_retries=0)(function).remote(argument))
    return result


def survey_all(job: Job, limits: Limits) -> list[tuple[list[Partition], Columns]]:
    """Cuts each file into partitions and finds out its columns, in one task per file.

    Raises:
        ScoringError: a file cannot be read.
    """
    task = ray.remote(num_cpus=1, max_retries=TRIES)(survey)
    with naming_errors():
        found: list[tuple[list[Partition], Columns]] = ray.get([task.remote(file, job, limits) for file in job.inputs])
    return found


class RayScorer:
    """What an actor holds: one predictor, and the way from a partition to its part.

    Args:
        checkpoint: its folder, as the nodes see it.
        heads: of the checkpoint.
        kept: columns of the input that the output keeps.
        output: file, folder or URI.
        threads: how many the predictor uses.

    Raises:
        ScoringError: this node has a different checkpoint.
    """

    def __init__(
        self, job: Job, checkpoint: Path, heads: Heads, kept: pyarrow.Schema, output: str, one_file: bool, threads: int
    ) -> None:
        wanted = job.answers_from
        if checkpoint_id(checkpoint) != wanted["checkpoint"]:
            raise ScoringError(f"{checkpoint}: is another checkpoint on this node than where the run was started")
        options = DecodeOptions(**job.decoding)
        answers = EngineAnswers(checkpoint, wanted["device"], wanted["precision"], options, threads)
        self.folder = RunFolder(output, one_file=one_file)
        self.scorer = Scorer(job, heads, kept, self.folder, answers)

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[str]]:
        """Scores partitions that Ray Data passes as JSON; returns `Done` as JSON."""
        partitions = [Partition.model_validate_json(text) for text in batch["partition"]]
        return {"done": [self.score(partition).model_dump_json() for partition in partitions]}

    def score(self, partition: Partition) -> Done:
        """Scores one partition. A task that is done again writes the same; a killed one leaves nothing that is read."""
        if self.folder.count_try(partition) > TRIES:
            raise ScoringError(
                f"{partition.file}: {TRIES} processes died over the {partition.rows} rows from row "
                f"{partition.first_row + 1} on; give actors more memory, or smaller --partition-tokens with --restart"
            )
        (done,) = self.scorer.run([partition])
        return done


def score_all(
    request: Request, job: Job, heads: Heads, kept: pyarrow.Schema, folder: RunFolder,
    todo: Sequence[Partition],
) -> Iterator[Done]:  # fmt: skip
    """Ray Data over the plan: its rows are partitions, one per block. Yields what is done, in any order.

    Raises:
        ScoringError: no actor fits, or a task failed for good.
    """
    if not todo:
        return
    assert request.checkpoint is not None
    gpus = request.gpus_per_actor
    cpus = request.cpus_per_actor
    if cpus is None:
        cpus = default_cpus(ray.nodes(), gpus)  # type: ignore[no-untyped-call] # a list of dicts
    threads = max(1, math.floor(cpus))
    has = ray.cluster_resources()  # type: ignore[no-untyped-call] # it gives a dict of numbers
    actors = min(request.actors or fitting_actors(has, cpus, gpus), len(todo))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = ray.data.from_items(
        [{"partition": partition.model_dump_json()} for partition in todo], override_num_blocks=len(todo)
    ).map_batches(
        RayScorer,
        fn_constructor_args=(
            job,
            request.checkpoint.absolute(),
            heads,
            kept,
            folder.name,
            folder.one_file,
            threads,
        ),
        batch_size=1,
        batch_format="numpy",
        # Two, so that an actor never waits for the driver; no more, because a task stays where it was handed out.
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    with naming_errors():
        for row in done.iter_rows():
            yield Done.model_validate_json(row["done"])


def default_cpus(nodes: Sequence[Mapping[str, Any]], gpus: float) -> float:
    """CPUs of an actor: one without a GPU; with GPUs as many as fit beside them on each node, at most 8 per GPU.

    A GPU computes faster than one core tokenizes.

    Args:
        nodes: of the cluster, as Ray describes them.
        gpus: of the actor.
    """
    resources: list[dict[str, float]] = [
        node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("GPU", 0) >= gpus
    ]
    if not gpus or not resources:
        return 1.0
    beside = min(has.get("CPU", 0) // (has["GPU"] // gpus) for has in resources)
    return max(1.0, min(beside, CPUS_PER_GPU * gpus))


def fitting_actors(has: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many actors a cluster has room for.

    Raises:
        ScoringError: the cluster has no room for one.
    """
    found = int(min(has.get(name, 0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each))
    if not found:
        raise ScoringError(
            f"no actor fits: one needs {cpus:g} CPUs and {gpus:g} GPUs, "
            f"the whole cluster has {has.get('CPU', 0):g} and {has.get('GPU', 0):g}"
        )
    return found


@contextmanager
def naming_errors() -> Iterator[None]:
    """Turns an error of Ray into one line: a task's own error unchanged, any other error with its real cause.

    Raises:
        ScoringError: instead of an error of Ray.
    """
    try:
        yield
    except Exception as error:  # Ray Data wraps errors in several ways
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, PolyheadError | TableError) and not isinstance(cause, RayError):
                raise cause from error
        if not any(isinstance(cause, RayError) for cause in causes):
            raise
        raise ScoringError(f"a task was lost for good ({one_line(causes[-1])})") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = getattr(current, "cause", None) or current.__cause__
