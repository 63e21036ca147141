"""What a user might name in a config as ``tests.user_functions:NAME``."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

number = 7


def shout(text: str) -> str:
    """A text or label transform."""
    return text.upper()


def forget(text: str) -> str:
    """A transform that empties what begins with an x."""
    return "" if text.startswith("x") else text


def count(text: str) -> int:
    """A transform that returns no text."""
    return len(text)


def has_stars(row: dict[str, Any]) -> bool:
    """A filter; fails on a row without stars."""
    return float(row["stars"]) > 0


def has_topic(row: dict[str, Any]) -> bool:
    """A filter; fails on a row without a topic."""
    return bool(row["topic"])


def drop_word(text: str, generator: random.Random) -> str:
    """An augmentation: leaves out a word at random."""
    words = text.split()
    words.pop(generator.randrange(len(words)))
    return " ".join(words)


def send_sigint(row: dict[str, Any]) -> bool:
    """A filter during which Ctrl-C is pressed."""
    os.kill(os.getpid(), signal.SIGINT)
    return True


def send_sigterm(row: dict[str, Any]) -> bool:
    """A filter during which SIGTERM comes."""
    os.kill(os.getpid(), signal.SIGTERM)
    return True
