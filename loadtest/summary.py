"""What a run found: counts, throughput, latency, where the server's time went, and whether the objectives are met."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.objectives import Verdict, judge
from loadtest.phases import find_saturation
from loadtest.run import Run
from loadtest.server_metrics import Stage, stages, subtract, texts_a_batch
from loadtest.tally import Counts


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """What ended within one phase of the shape."""

    name: str
    users: int
    texts_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    errors: int
    mismatches: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of one run.

    Attributes:
        requests: all that came to an end.
        texts, tokens: in requests that were answered rightly.
        mismatches: requests with at least one wrong answer.
        foreign: of these, the ones that got the answer to another text.
        errors: requests without an answer, and users that broke.
        duration_s: from when the first request was due to the end of the last.
        mean_ms, p50_ms, p95_ms, p99_ms: latency of the requests that were answered or timed out; None without any.
        late_p99_ms: open arrivals only, how late the load generator itself started requests.
        server: time by stage; empty where the server's metrics were not asked for or could not be had at the end.
        texts_a_batch: as the server computed them, or None.
        phases: of shapes that have more than one.
        saturated: of the shape steps, the phase beyond which users added next to nothing.
    """

    shape: str
    protocol: str
    users: int
    duration_s: float
    requests: int
    texts: int
    tokens: int
    mismatches: int
    foreign: int
    errors: int
    requests_s: float
    texts_s: float
    tokens_s: float
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    error_rate: float | None
    mismatch_rate: float | None
    late_p99_ms: float | None
    server: dict[str, Stage]
    texts_a_batch: float | None
    phases: list[PhaseResult]
    saturated: str | None
    verdicts: list[Verdict]

    @property
    def exit_code(self) -> int:
        """0 only if something was answered and all objectives are met."""
        return 0 if self.texts > 0 and all(verdict.met for verdict in self.verdicts) else 1


def summarize(run: Run, broken_users: int = 0) -> Summary:
    """Draws it from a run that has ended; `broken_users` counts exceptions outside requests."""
    total, options = run.tally.total(), run.options
    duration_s = (run.tally.ended or 0.0) - (run.tally.began or 0.0)
    errors = total.errors + broken_users
    ended = total.requests + broken_users
    phases = [_phase_result(run, place) for place in range(len(run.phases))] if len(run.phases) > 1 else []
    saturation = find_saturation([phase.texts_s for phase in phases]) if options.shape == "steps" else None
    added = subtract(run.before, run.after) if run.before and run.after else {}
    lateness = run.tally.lateness.percentile(0.99)
    figures: dict[str, Any] = {
        "requests_s": _per_second(total.requests, duration_s),
        "texts_s": _per_second(total.texts, duration_s),
        "tokens_s": _per_second(total.tokens, duration_s),
        "mean_ms": _rounded(total.latencies.mean()),
        **_percentiles(total),
        "error_rate": errors / ended if ended else None,
        "mismatch_rate": total.mismatches / ended if ended else None,
    }
    return Summary(
        shape=options.shape,
        protocol=options.protocol,
        users=max(phase.users_to for phase in run.phases),
        duration_s=round(duration_s, 3),
        requests=total.requests,
        texts=total.texts,
        tokens=total.tokens,
        mismatches=total.mismatches,
        foreign=total.outcomes.get("foreign", 0),
        errors=errors,
        **figures,
        late_p99_ms=_rounded(lateness),
        server=stages(added, options.model) if added else {},
        texts_a_batch=texts_a_batch(added, options.model) if added else None,
        phases=phases,
        saturated=None if saturation is None else phases[saturation].name,
        verdicts=judge(run.objectives, figures),
    )


def _phase_result(run: Run, place: int) -> PhaseResult:
    phase = run.phases[place]
    counts, seconds = run.counts(phase)
    return PhaseResult(
        name=phase.name,
        users=phase.users_to,
        texts_s=_per_second(counts.texts, seconds),
        **_percentiles(counts),
        errors=counts.errors,
        mismatches=counts.mismatches,
    )


def _percentiles(counts: Counts) -> dict[str, float | None]:
    return {f"p{hundredth}_ms": _rounded(counts.latencies.percentile(hundredth / 100)) for hundredth in (50, 95, 99)}


def _per_second(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 2)


def write_summary(summary: Summary, path: Path) -> None:
    """Writes JSON beside the target, then renames it into place: nobody reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as part:
        try:
            json.dump(asdict(summary) | {"exit_code": summary.exit_code}, part, indent=2)
            part.write("\n")
            part.close()
            Path(part.name).chmod(0o644)  # a temporary file is its owner's only
            os.replace(part.name, path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
