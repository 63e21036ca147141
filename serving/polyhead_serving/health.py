"""What the supervisor knows of its server: Triton's own health stays good over a dead model process or in a drain."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Literal

RestartReason = Literal["exit", "canary", "model_process"]
REASONS: tuple[RestartReason, ...] = ("exit", "canary", "model_process")


class Health:
    """The supervisor's state; written by the supervisor, read by probes in threads of their own.

    Args:
        is_broken: whether the server is known, right now, to have lost a process.
    """

    def __init__(self, is_broken: Callable[[], bool] = lambda: False) -> None:
        self._is_broken = is_broken
        self._lock = threading.Lock()
        self._wrong: str | None = "starting"
        self._draining = False
        self._canary_s = 0.0
        self._canary_failures = 0
        self._restarts: Counter[RestartReason] = Counter()

    @property
    def not_ready(self) -> str | None:
        """Why no traffic should come, or None."""
        with self._lock:
            return "draining" if self._draining else self._wrong

    def may_come_again(self) -> bool:
        """Whether a request that failed just now failed because the server must be, or is being, restarted."""
        return self.not_ready is not None or self._is_broken()

    def canary(self, wrong: str | None, seconds: float) -> None:
        """Takes what a canary of the running server said, and how long it took."""
        with self._lock:
            self._wrong = wrong
            self._canary_s = seconds
            self._canary_failures += wrong is not None

    def restarting(self, reason: RestartReason, wrong: str) -> None:
        """Counts a restart; not ready until the next canary is answered."""
        with self._lock:
            self._restarts[reason] += 1
            self._wrong = f"restarting: {wrong}"

    def drain(self) -> None:
        """Not ready any more, whatever canaries say."""
        with self._lock:
            self._draining = True

    def metrics(self) -> str:
        """The same in Prometheus' text format."""
        with self._lock:
            lines = [
                "# HELP polyhead_ready Whether the last canary was answered and no drain is on",
                "# TYPE polyhead_ready gauge",
                f"polyhead_ready {int(self._wrong is None and not self._draining)}",
                "# HELP polyhead_canary_seconds Seconds that the last canary took",
                "# TYPE polyhead_canary_seconds gauge",
                f"polyhead_canary_seconds {self._canary_s:.6f}",
                "# HELP polyhead_canary_failures_total Canaries of a started server that were not answered",
                "# TYPE polyhead_canary_failures_total counter",
                f"polyhead_canary_failures_total {self._canary_failures}",
                "# HELP polyhead_restarts_total Restarts of the whole server, by what led to them",
                "# TYPE polyhead_restarts_total counter",
                *(f'polyhead_restarts_total{{reason="{reason}"}} {self._restarts[reason]}' for reason in REASONS),
            ]
        return "".join(f"{line}\n" for line in lines)
