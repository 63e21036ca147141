"""The load test's own command-line options, checked once."""

from __future__ import annotations

import argparse
import math
from typing import Any

from loadtest.phases import SHAPES

MOST_TEXTS = 64  # the served config's max_batch_size


def add_options(parser: Any) -> None:
    """Adds them to locust's parser, which reads the environment variables too.

    Those of shape and load are on the web page as well; a run's master tells its workers all of them.
    """
    group = parser.add_argument_group("polyhead", "Every answer is compared with what a checkpoint says of its text.")

    def add(name: str, variable: str, about: str, on_page: bool = False, **rest: Any) -> None:
        action = group.add_argument(name, env_var=f"POLYHEAD_{variable}", help=about, **rest)
        action.include_in_web_ui = on_page

    add("--golden", "GOLDEN", "A golden.jsonl, or a file of polyhead-golden; required.", default="", metavar="PATH")
    add("--checkpoint", "CHECKPOINT", "Whose heads are to be served; default: the folder of --golden.", default="",
        metavar="FOLDER")  # fmt: skip
    add("--objectives", "OBJECTIVES", "What the run must reach; default: no error and no mismatch.", default="",
        metavar="FILE")  # fmt: skip
    add("--summary", "SUMMARY", "Where to write JSON.", default="", metavar="FILE")
    add("--protocol", "PROTOCOL", "http (default) or grpc.", choices=("http", "grpc"), default="http")
    add("--model", "MODEL", "The model's name.", default="gpt2_classifier")
    add("--api-key", "API_KEY", "For a proxy that asks for one.", default="")
    add("--tolerance", "TOLERANCE", "Allowed score difference; default: what the precision allows that --metrics-url "
        "names, else that of fp32.", type=_positive)  # fmt: skip
    add("--metrics-url", "METRICS_URL", "The server's metrics, such as http://localhost:8002/metrics.", default="",
        metavar="URL")  # fmt: skip
    add("--request-timeout-s", "TIMEOUT_S", "Seconds; default 30.", type=_positive, default=30.0)
    add("--seed", "SEED", "Of the draw of texts and arrivals.", type=int, default=0)
    add("--texts-per-request", "TEXTS_PER_REQUEST", "1 to 64, or a mix such as 1,1,8,64 of which each request draws "
        "one; default 1.", on_page=True, type=_checked_sizes, default="1")  # fmt: skip
    add("--shape", "SHAPE", "How the load goes over time, with -u as its highest and -t as its length; default "
        "constant.", on_page=True, choices=tuple(SHAPES), default="constant")  # fmt: skip
    add("--shape-steps", "SHAPE_STEPS", "Of the shape steps; default 8.", on_page=True, type=_steps, default=8)
    add("--rate", "RATE", "Of the shape open: texts a second, of all users together; default 10.", on_page=True,
        type=_positive, default=10.0)  # fmt: skip


def sizes_of(texts_per_request: str) -> tuple[int, ...]:
    """The numbers of texts that a request draws from."""
    return tuple(int(size) for size in texts_per_request.split(","))


def _checked_sizes(text: str) -> str:
    # It stays a string: locust's web page hands values back in the type that they had.
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
