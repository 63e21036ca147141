"""A lock for a few lines that neither wait nor switch greenlets.

gevent's patched lock may forget to wake a waiter in another native thread's hub: a test hung in one of 40 runs. The
original lock cannot, and greenlets of one thread never contend for it, as none is switched away from inside.
"""

from __future__ import annotations

import sys
import threading
from contextlib import AbstractContextManager


def brief_lock() -> AbstractContextManager[bool]:
    """A lock of the operating system's threads, whether gevent has patched them or not."""
    monkey = sys.modules.get("gevent.monkey")
    make = monkey.get_original("threading", "Lock") if monkey is not None else threading.Lock
    lock: AbstractContextManager[bool] = make()
    return lock
