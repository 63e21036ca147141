"""One run: what is sent and expected, what it must reach, and what has been counted."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from loadtest.golden import GoldenRow, read_golden, read_heads
from loadtest.objectives import read_objectives
from loadtest.phases import SHAPES, Phase, find_saturation, phases_of
from loadtest.server_metrics import Samples, precision, scrape
from loadtest.tally import Counts, Tally
from polyhead_client import Client, ModelSchema, RetryPolicy

# Score differences by the precision that the server computes in: polyhead.gate's, and for fp32 what two machines and
# batch sizes may differ by.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.03, "int8": 0.05}


class MismatchedModelError(Exception):
    """The server serves another model than the expected answers are of."""


@dataclass
class Run:
    """Made by `prepare_run`; all users of a process share it.

    Attributes:
        options: locust's, with this package's among them.
        rows: texts and what the model must say of them.
        objectives: limits by name.
        tally: what has been counted; a worker's is emptied with each report.
        started: clock time at which the first users came; 0 before.
        phases: of the shape.
        before, after: the server's metrics at both ends, where they were asked for and could be had.
        users: numbers the users, so that each draws its own texts.
    """

    options: Any
    rows: list[GoldenRow]
    schema: ModelSchema
    objectives: dict[str, float]
    tally: Tally = field(default_factory=Tally)
    started: float = 0.0
    phases: list[Phase] = field(default_factory=list)
    before: Samples | None = None
    after: Samples | None = None
    users: Any = field(default_factory=count)

    def plan(self) -> None:
        """Lays out the shape. The web page may begin more than one run, with other options."""
        options = self.options
        users = options.num_users or 1
        duration_s = float(options.run_time or SHAPES[options.shape])
        self.phases = phases_of(options.shape, users, duration_s, options.shape_steps)
        if not options.worker:
            options.sources = users  # of open arrivals; unlike locust's own options it reaches the workers

    def begin(self) -> None:
        """Nothing is counted yet."""
        self.tally = Tally()
        self.started = time.time()

    def users_at(self, elapsed_s: float) -> int | None:
        """How many users there should be; None when the run is over. Steps end early, beyond saturation."""
        done = [phase for phase in self.phases if phase.end_s <= elapsed_s]
        # Workers report every three seconds, so the step that has just ended is not known in full.
        if self.options.shape == "steps" and find_saturation(self.rates(done[:-1])) is not None:
            self.phases = done
        if len(done) == len(self.phases):
            return None
        return self.phases[len(done)].users_at(elapsed_s)

    def counts(self, phase: Phase) -> tuple[Counts, int]:
        """What ended in the seconds that lie in a phase as a whole, and how many these are."""
        start, end = math.ceil(self.started + phase.start_s), math.floor(self.started + phase.end_s)
        return self.tally.between(start, end), max(end - start, 0)

    def rates(self, phases: Sequence[Phase]) -> list[float]:
        """Texts a second of each."""
        return [counts.texts / seconds if seconds else 0.0 for counts, seconds in map(self.counts, phases)]


def prepare_run(host: str, options: Any) -> Run:
    """Reads what is expected and proves that the server can be asked for it; sets ``options.tolerance``.

    Raises:
        GoldenError, ObjectivesError, MetricsError, MismatchedModelError, PolyheadClientError: it cannot be asked.
    """
    golden = Path(options.golden)
    rows = read_golden(golden)
    objectives = read_objectives(Path(options.objectives) if options.objectives else None)
    with connect(host, options) as client:
        schema = client.schema()
    if schema.width != len(rows[0].scores):
        raise MismatchedModelError(
            f"{golden}: has {len(rows[0].scores)} scores a text, the served model {schema.width}; "
            "was it made from the served checkpoint?"
        )
    config = (Path(options.checkpoint) if options.checkpoint else golden.parent) / "config.json"
    heads = read_heads(config)
    if heads is not None and heads != schema.heads:
        raise MismatchedModelError(f"{golden}: the served model's heads differ from those in {config}")
    before = scrape(options.metrics_url) if options.metrics_url and not options.worker else None
    if options.tolerance is None:
        options.tolerance = TOLERANCE[(before and precision(before, options.model)) or "fp32"]
    return Run(options, rows, schema, objectives, before=before)


def connect(host: str, options: Any) -> Client:
    """A client that repeats nothing: a failure that a retry would hide is what a load test looks for."""
    return Client(
        host,
        options.model,
        protocol=options.protocol,
        timeout_s=options.request_timeout_s,
        retry=RetryPolicy(max_attempts=1),
        api_key=options.api_key or None,
    )
