"""Turns Ctrl-C, SIGTERM and SIGHUP into KeyboardInterrupt, even if the parent process ignores these signals."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # the exit code that shells use: 128 + SIGINT


@contextmanager
def interruptible(
    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
) -> Iterator[None]:
    """These signals raise KeyboardInterrupt in this block.

    A script's shell starts ``command &`` with SIGINT ignored. Python would leave it ignored. SIGHUP, the end of a
    terminal or of its connection, stays ignored if it is: nohup does that.
    """
    wanted = [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
