"""The load test's own command-line options.

Each option can also be set by a variable such as ``LOCUST_POLYHEAD_GOLDEN``. Locust's own variables start with
``LOCUST_``, and those of the product's commands with ``POLYHEAD_``, so no variable is read by two commands.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from loadtest.phases import SHAPES
from loadtest.tally import SLOW_MS

MOST_TEXTS = 64  # max_batch_size in the served config.pbtxt


def add_options(parser: Any) -> None:
    """Adds the options to Locust's parser. The master sends the values of all options to its workers."""
    group = parser.add_argument_group(
        "polyhead", "Compares every answer with the checkpoint's answer to the same text."
    )

    def add(name: str, about: str, on_web_page: bool = False, **rest: Any) -> None:
        variable = f"LOCUST_POLYHEAD_{name.removeprefix('--').replace('-', '_').upper()}"
        group.add_argument(name, env_var=variable, help=about, **rest).include_in_web_ui = on_web_page

    add("--golden", "Expected answers: a checkpoint's golden.jsonl, or a file made by polyhead-golden; required.",
        default="", metavar="PATH")  # fmt: skip
    add("--checkpoint", "The checkpoint whose heads the server must have; default: the folder of --golden.",
        default="", metavar="FOLDER")  # fmt: skip
    add("--objectives", "What the run must reach, as TOML; default: no error and no mismatch.",
        default="", metavar="FILE")  # fmt: skip
    add("--summary", "Write the summary to this file as JSON.", default="", metavar="FILE")
    add("--protocol", "http (default) or grpc.", choices=("http", "grpc"), default="http")
    add("--model", "The served model's name; default gpt2_classifier.", default="gpt2_classifier")
    add("--api-key", "The key that a proxy asks for.", default="")
    add("--tolerance", "Allowed difference of a score; default: the tolerance that the server's schema states, "
        "else 0.001, which is right for fp32 only.", type=_positive)  # fmt: skip
    add("--metrics-url", "The server's metrics, such as http://127.0.0.1:8002/metrics.", default="", metavar="URL")
    add("--request-timeout-s", "How long a caller waits, in seconds; default 30.", type=_positive, default=30.0)
    add("--slow-ms", f"Count requests that take longer, in milliseconds, or get no answer; default {SLOW_MS:g}.",
        on_web_page=True, type=_positive, default=SLOW_MS)  # fmt: skip
    add("--seed", "Seed of the random draw of texts and arrivals.", type=int, default=0)
    add("--texts-per-request", "1 to 64, or a mix such as 1,1,8,64 from which each request draws one; default 1.",
        on_web_page=True, type=_checked_sizes, default="1")  # fmt: skip
    add("--shape", "How the load changes over time; -u is the highest number of users, -t the length; default "
        "constant.", on_web_page=True, choices=tuple(SHAPES), default="constant")  # fmt: skip
    add("--shape-steps", "Number of steps of the shape steps; default 8.", on_web_page=True, type=_steps, default=8)
    add("--rate", "Texts per second of the shape open, for all users together; default 10.", on_web_page=True,
        type=_positive, default=10.0)  # fmt: skip


def sizes_of(texts_per_request: str) -> tuple[int, ...]:
    """The numbers of texts that a request draws from."""
    return tuple(int(size) for size in texts_per_request.split(","))


def _checked_sizes(text: str) -> str:
    # The value stays a string because Locust's web page sends values back in the type that they had.
    if not all(1 <= size <= MOST_TEXTS for size in sizes_of(text)):
        raise argparse.ArgumentTypeError(f"must be 1 to {MOST_TEXTS}, the server's max_batch_size, got {text}")
    return text


def _positive(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def _steps(text: str) -> int:
    value = int(text)
    if not 2 <= value <= 100:
        raise argparse.ArgumentTypeError(f"must be 2 to 100, got {text}")
    return value
