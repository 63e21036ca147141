"""What runs on Ray: the survey of the input files, and Ray Data over the partitions."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

import pyarrow
import ray
import ray.data

from polyhead_scoring.cluster import cluster_resources, fitting_actors, naming_errors
from polyhead_scoring.formats import FORMATS, Columns
from polyhead_scoring.job import Job
from polyhead_scoring.partition import Limits, Partition
from polyhead_scoring.request import Request
from polyhead_scoring.run_folder import Done
from polyhead_scoring.scorer import TRIES, Scorer, Task


def survey_all(job: Job, limits: Limits) -> list[tuple[list[Partition], Columns]]:
    """Cuts each file into partitions and finds its columns, a task a file.

    Raises:
        ScoringError: a file cannot be read.
    """
    survey = ray.remote(num_cpus=1, max_retries=TRIES)(FORMATS[job.format].survey)
    with naming_errors():
        found: list[tuple[list[Partition], Columns]] = ray.get(
            [survey.remote(file.name, job.text_column, limits) for file in job.inputs if file.size]
        )
    return found


def score_all(
    request: Request, job: Job, kept: pyarrow.Schema, output: str, todo: Sequence[Partition]
) -> Iterator[Done]:
    """Ray Data over the plan: its rows are partitions, a block each; gives what is done, in no order.

    Raises:
        ScoringError: no actor fits, or a task failed for good.
    """
    if not todo:
        return
    cpus, gpus = request.cpus_per_actor, request.gpus_per_actor
    task = Task(
        job=job, checkpoint=request.checkpoint.absolute(), output=output, kept=kept.serialize().to_pybytes(),
        threads=max(1, math.floor(cpus)),
    )  # fmt: skip
    actors = min(request.actors or fitting_actors(cluster_resources(), cpus, gpus), len(todo))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    done = ray.data.from_items(
        [{"partition": partition.model_dump_json()} for partition in todo], override_num_blocks=len(todo)
    ).map_batches(
        Scorer,
        fn_constructor_args=(task,),
        batch_size=1,
        batch_format="numpy",
        # Two, so that an actor never waits for the driver; no more, since a task once handed out stays where it is.
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    with naming_errors():
        for row in done.iter_rows():
            yield Done.model_validate_json(row["done"])
