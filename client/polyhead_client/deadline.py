"""A call's deadline: one for everything that the call does, and the way to give it up early."""

from __future__ import annotations

import time
from collections.abc import Callable


class Deadline:
    """So many seconds from now; `cancel` may come from another thread."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.cancelled = False
        self._ends = time.monotonic() + timeout_s
        self._abort: Callable[[], None] | None = None

    def remaining_s(self) -> float:
        """Seconds left, 0 when it has passed or was cancelled."""
        return 0.0 if self.cancelled else max(self._ends - time.monotonic(), 0.0)

    def on_cancel(self, abort: Callable[[], None] | None) -> None:
        """Names what `cancel` runs to wake whoever waits for a server now; None: nobody does."""
        self._abort = abort
        if abort is not None and self.cancelled:
            abort()

    def cancel(self) -> None:
        """Ends it now."""
        self.cancelled = True
        abort = self._abort
        if abort is not None:
            abort()
