"""What a load test found: counts, throughput, latency, and the exit code."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REQUEST_NAME = "classify"


class Mismatch(Exception):  # noqa: N818 - the word that locust's report and this summary show
    """The server answered, but not as the golden file says."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of one run.

    Attributes:
        requests: all that came to an end.
        texts: in requests that were answered rightly.
        mismatches: requests with at least one wrong answer.
        errors: requests without an answer, and users that broke.
        duration_s: from the first request to the last.
        texts_per_s: `texts` over `duration_s`.
        p50_ms, p95_ms: response times of all requests, rounded as locust rounds them; None without requests.
    """

    requests: int
    texts: int
    mismatches: int
    errors: int
    duration_s: float
    texts_per_s: float
    p50_ms: float | None
    p95_ms: float | None

    @property
    def exit_code(self) -> int:
        """0 only if something was answered and everything rightly."""
        return 0 if self.texts > 0 and self.mismatches == 0 and self.errors == 0 else 1


def summarize(stats: Any, texts_per_request: int, broken_users: int = 0) -> Summary:
    """Reads locust's ``RequestStats``; `broken_users` counts exceptions outside requests."""
    total = stats.total
    failures = [error for error in stats.errors.values() if error.name == REQUEST_NAME]
    mismatches = sum(error.occurrences for error in failures if _is_mismatch(error.error))
    texts = (total.num_requests - total.num_failures) * texts_per_request
    duration_s = max((total.last_request_timestamp or 0) - (total.start_time or 0), 0.0) if texts else 0.0
    p50, p95 = (
        (total.get_response_time_percentile(share) for share in (0.5, 0.95)) if total.num_requests else (None, None)
    )
    return Summary(
        requests=total.num_requests,
        texts=texts,
        mismatches=mismatches,
        errors=total.num_failures - mismatches + broken_users,
        duration_s=round(duration_s, 3),
        texts_per_s=round(texts / duration_s, 3) if duration_s else 0.0,
        p50_ms=p50,
        p95_ms=p95,
    )


def _is_mismatch(error: Any) -> bool:
    # Exceptions that come from a worker process are their repr.
    return isinstance(error, Mismatch) or (isinstance(error, str) and error.startswith("Mismatch("))


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


def format_summary(summary: Summary) -> str:
    """A short table for people."""
    rows = {name.replace("_", " "): "-" if value is None else f"{value:,}" for name, value in asdict(summary).items()}
    verdict = "all answers agree with golden" if summary.exit_code == 0 else "FAILED"
    lines = [f"  {name:<12} {value:>12}" for name, value in rows.items()]
    return "\n".join([f"load test: {verdict}", *lines])
