"""One run: what it sends and expects, what it must reach, and what it has counted."""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from loadtest import CannotRunError
from loadtest.expected import TOLERANCE, ExpectedAnswer, read_expected, read_heads
from loadtest.phases import SHAPES, Phase, find_saturation, phases_of
from loadtest.server_metrics import Samples, scrape
from loadtest.tally import Counts, Tally
from polyhead_client import Client, ModelSchema, RetryPolicy

# Figures of the summary that objectives can limit. ``min_`` is a lower limit, all others are upper limits.
BOUNDS = (
    "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms", "slow_share", "error_rate", "refused_rate", "mismatch_rate",
    "without_server_s", "min_texts_s",
)  # fmt: skip
SHARES = ("slow_share", "error_rate", "refused_rate", "mismatch_rate")
# These hold even if the file does not mention them: a fast wrong answer is not a success, and neither is a lost one.
ALWAYS = {"error_rate": 0.0, "refused_rate": 0.0, "mismatch_rate": 0.0}
CONNECTIONS = 256  # of one user with open arrivals; more requests wait, and their latency includes that wait


@dataclass
class LoadRun:
    """Made by `prepare_run`; all users of a process share it.

    Attributes:
        options: Locust's options, which include those of `loadtest.options`.
        expected: texts and their expected answers.
        objectives: limits by name.
        tally: what has been counted; a worker's tally is emptied by each report to the master.
        started: clock time at which the first users started; 0 before.
        phases: of the shape.
        before, after: the server's metrics at both ends, if they were asked for and could be read.
        users: numbers the users, so that each draws its own texts.
        stopped: whether the run shall end now.
        reached_end: whether the shape went through all of its phases.
        ended: clock time at which the last user had stopped; 0 before.
        lost_workers: how many workers ended without reporting all of their counts.
    """

    options: Any
    expected: list[ExpectedAnswer]
    schema: ModelSchema
    objectives: dict[str, float]
    tally: Tally = field(default_factory=Tally)
    started: float = 0.0
    phases: list[Phase] = field(default_factory=list)
    before: Samples | None = None
    after: Samples | None = None
    users: Any = field(default_factory=count)
    stopped: bool = False
    reached_end: bool = False
    ended: float = 0.0
    lost_workers: int = 0

    def plan(self) -> None:
        """Lays out the phases. The web page can start several runs, each with its own options."""
        options = self.options
        users = options.num_users or 1
        duration_s = float(options.run_time or SHAPES[options.shape])
        self.phases = phases_of(options.shape, users, duration_s, options.shape_steps)
        if not options.worker:
            options.sources = users  # of open arrivals; workers receive it, unlike Locust's own -u

    def begin(self) -> None:
        """Starts counting from zero."""
        self.tally = Tally(slow_ms=self.options.slow_ms)
        self.started = time.time()
        self.stopped, self.reached_end, self.ended, self.lost_workers = False, False, 0.0, 0

    @property
    def tolerance(self) -> str:
        """Says what scores are compared with."""
        return f"Tolerance of scores: {self.options.tolerance:g} ({self.options.tolerance_reason})."

    @property
    def planned_s(self) -> float:
        """How long the users should send, in seconds."""
        return self.phases[-1].end_s

    @property
    def cut_short(self) -> str | None:
        """Why the run does not show what it should; None if it went to its end."""
        if not self.reached_end:
            return f"stopped before its {self.planned_s:g} s were over"
        if not self.ended:
            return "stopped while requests were under way"
        if self.lost_workers:
            return f"workers lost with their last counts: {self.lost_workers}"
        return None

    def users_at(self, elapsed_s: float) -> int | None:
        """How many users there should be; None when the run is over. The shape steps ends early after saturation."""
        done = [phase for phase in self.phases if phase.end_s <= elapsed_s]
        # Workers report every three seconds, so the step that has just ended is not yet known in full.
        if self.options.shape == "steps" and find_saturation(self.rates(done[:-1])) is not None:
            self.phases = done
        if self.stopped:
            return None
        if len(done) == len(self.phases):
            self.reached_end = True
            return None
        return self.phases[len(done)].users_at(elapsed_s)

    def counts(self, phase: Phase) -> tuple[Counts, int]:
        """The counts of the whole seconds within a phase, and the number of these seconds."""
        start, end = math.ceil(self.started + phase.start_s), math.floor(self.started + phase.end_s)
        return self.tally.between(start, end), max(end - start, 0)

    def rates(self, phases: Sequence[Phase]) -> list[float]:
        """Texts per second of each phase."""
        return [counts.texts / seconds if seconds else 0.0 for counts, seconds in map(self.counts, phases)]


def prepare_run(host: str, options: Any) -> LoadRun:
    """Reads what is expected and checks that the server has the same model; sets ``options.tolerance``.

    Raises:
        CannotRunError, PolyheadClientError: the run cannot be made.
    """
    golden = Path(options.golden)
    expected = read_expected(golden)
    objectives = read_objectives(Path(options.objectives) if options.objectives else None)
    with connect(host, options) as client:
        schema = client.schema()
    if schema.width != len(expected[0].scores):
        raise CannotRunError(
            f"{golden}: has {len(expected[0].scores)} scores per text, the served model {schema.width}; "
            "was it made from the served checkpoint?"
        )
    config = (Path(options.checkpoint) if options.checkpoint else golden.parent) / "config.json"
    for place, heads in ((config, read_heads(config)), (golden, expected[0].heads)):
        if heads is not None and heads != schema.heads:
            raise CannotRunError(f"{golden}: the served model's heads differ from those in {place}")
    before = scrape(options.metrics_url) if options.metrics_url and not options.worker else None
    options.tolerance, options.tolerance_reason = choose_tolerance(options.tolerance, schema)
    return LoadRun(options, expected, schema, objectives, before=before)


def choose_tolerance(asked: float | None, schema: ModelSchema) -> tuple[float, str]:
    """The allowed difference of a score, and where it comes from: the option, the server's schema, or the default."""
    if asked is not None:
        return asked, "--tolerance"
    if schema.tolerance is not None:
        return schema.tolerance, f"the server's schema states it for {schema.precision}"
    served = f"serves {schema.precision}, but" if schema.precision else "states no precision and"
    return TOLERANCE, (
        f"assumed: right for fp32 only; the server {served} states no tolerance; --tolerance sets another one"
    )


def connect(host: str, options: Any) -> Client:
    """A client that never retries: a load test must see the failures that a retry would hide."""
    return Client(
        host,
        options.model,
        protocol=options.protocol,
        timeout_s=options.request_timeout_s,
        max_connections=CONNECTIONS,
        retry=RetryPolicy(max_attempts=1),
        api_key=options.api_key or None,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """One objective and its measured figure; None if there was nothing to measure."""

    objective: str
    limit: float
    measured: float | None
    met: bool


def read_objectives(path: Path | None) -> dict[str, float]:
    """Reads the file. The objectives in `ALWAYS` apply unless the file sets them.

    Raises:
        CannotRunError: the file cannot be read, or a key or value is not allowed.
    """
    if path is None:
        return dict(ALWAYS)
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotRunError(f"{path}: cannot be read as TOML ({error})") from error
    for name, value in fields.items():
        if name not in BOUNDS:
            raise CannotRunError(f"{path}: unknown key {name!r}; allowed are {', '.join(BOUNDS)}")
        # isinstance takes true for an int
        if isinstance(value, bool) or not isinstance(value, int | float) or not (value >= 0 and math.isfinite(value)):
            raise CannotRunError(f"{path}: {name} must be a number of at least 0, got {value!r}")
        if name in SHARES and value > 1:
            raise CannotRunError(f"{path}: {name} is a share of requests, at most 1, got {value!r}")
    return ALWAYS | {name: float(value) for name, value in fields.items()}


def judge(objectives: Mapping[str, float], figures: Mapping[str, Any]) -> list[Verdict]:
    """Compares each objective with its figure; without a figure the objective is missed."""
    verdicts = []
    for name, limit in objectives.items():
        measured = figures[name.removeprefix("min_")]
        met = measured is not None and (measured >= limit if name.startswith("min_") else measured <= limit)
        verdicts.append(Verdict(name, limit, measured, met))
    return verdicts
