"""The load test's own command-line options, checked once."""

from __future__ import annotations

import argparse
import math
from typing import Any

from loadtest.verify import TOLERANCE


def add_options(parser: Any) -> None:
    """Adds them to locust's parser, which reads the environment variables too."""
    group = parser.add_argument_group("polyhead", "Every answer is compared with the checkpoint's golden texts.")
    group.add_argument(
        "--golden", env_var="POLYHEAD_GOLDEN", default="", metavar="PATH", help="A golden.jsonl; required."
    )
    group.add_argument("--summary", env_var="POLYHEAD_SUMMARY", default="", metavar="FILE", help="Where to write JSON.")
    group.add_argument("--model", env_var="POLYHEAD_MODEL", default="gpt2_classifier", help="The model's name.")
    group.add_argument(
        "--tolerance",
        env_var="POLYHEAD_TOLERANCE",
        type=_positive,
        default=TOLERANCE,
        help="Allowed score difference.",
    )
    group.add_argument(
        "--texts-per-request",
        env_var="POLYHEAD_TEXTS_PER_REQUEST",
        type=_batch,
        default=1,
        help="1 to 64; default 1.",
    )
    group.add_argument("--seed", env_var="POLYHEAD_SEED", type=int, default=0, help="Of the draw of texts.")
    group.add_argument(
        "--request-timeout-s",
        env_var="POLYHEAD_TIMEOUT_S",
        type=_positive,
        default=30.0,
        help="Seconds; default 30.",
    )


def _positive(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def _batch(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 64:
        raise argparse.ArgumentTypeError(f"must be 1 to 64, the server's max_batch_size, got {text}")
    return value
