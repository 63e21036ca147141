"""The shape that locust asks for the number of users; which one it is `--shape` says."""

from __future__ import annotations

from typing import Any, ClassVar

from locust import LoadTestShape

SPAWN_RATE = 100.0  # users a second; beyond, locust warns


class Shape(LoadTestShape):
    """What ``--shape`` names, with ``-u`` as its highest load and ``-t`` as its length."""

    use_common_options: ClassVar[bool] = True

    def reset_time(self) -> None:
        """Called by locust before the first tick of each run."""
        super().reset_time()
        run: Any = self.runner.environment.run
        run.plan()

    def tick(self) -> tuple[int, float] | None:
        """The number of users now; None when the run is over."""
        users = self.runner.environment.run.users_at(self.get_run_time())
        return None if users is None else (users, SPAWN_RATE)
