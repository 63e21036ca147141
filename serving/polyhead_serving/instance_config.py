"""The ``parameters`` of a model's config.pbtxt, and what else its configuration says about a model instance."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyhead.errors import OptionError
from polyhead.machine import usable_cores
from polyhead.scheduler import QueueLimits
from polyhead_serving.answer_log import NAMES, AnswerLogConfig

AT_ONCE_S = 0.1


@dataclass(frozen=True)
class InstanceConfig:
    """How an instance of the model computes and how much it lets wait.

    Attributes:
        instances: instances of this model on this server.
        threads: torch's threads.
        max_batch_size: the most texts that Triton hands over at once.
        at_once_s: how long `execute` waits for answers, in seconds, before it returns without them. Returning an answer
            costs less than sending it later. But while `execute` waits, new requests cannot reach the queue.
        limits: bounds of the queue.
        answer_log: what is logged; None: nothing.
    """

    instances: int
    threads: int
    max_batch_size: int
    at_once_s: float
    limits: QueueLimits
    answer_log: AnswerLogConfig | None = None

    @classmethod
    def read(cls, model_config: Mapping[str, Any]) -> InstanceConfig:
        """Reads Triton's form of config.pbtxt, POLYHEAD_THREADS and POLYHEAD_ANSWER_LOG_KEY.

        Raises:
            OptionError: a parameter is unknown or out of range.
        """
        given = {name: value["string_value"] for name, value in model_config.get("parameters", {}).items()}
        default = QueueLimits()
        limits = QueueLimits(
            texts=int(_number(given, "queue_texts", default.texts)),
            tokens=int(_number(given, "queue_tokens", default.tokens)),
            default_timeout_s=_number(given, "default_timeout_s", default.default_timeout_s),
        )
        at_once_s = _number(given, "at_once_s", AT_ONCE_S)
        logged = AnswerLogConfig.read(given)
        if given:
            known = ", ".join(("at_once_s", "default_timeout_s", "queue_texts", "queue_tokens", *NAMES))
            raise OptionError(f"config.pbtxt: unknown parameter {min(given)}; known are {known}")
        groups = model_config.get("instance_group", [])
        instances = sum(group["count"] * max(1, len(group.get("gpus", []))) for group in groups)
        return cls(instances, _threads(groups), model_config["max_batch_size"], at_once_s, limits, logged)


def _number(given: dict[str, str], name: str, default: float) -> float:
    """Takes a parameter out of `given`."""
    text = given.pop(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise OptionError(f"config.pbtxt: {name} must be a number > 0, got {text!r}")
    return value


def _threads(groups: list[dict[str, Any]]) -> int:
    """POLYHEAD_THREADS, or this instance's share of the cores that the process may use."""
    threads = os.environ.get("POLYHEAD_THREADS")
    if threads is None:
        instances: int = sum(group["count"] for group in groups if group["kind"] != "KIND_GPU")
        return max(1, usable_cores() // max(1, instances))
    if not (threads.isascii() and threads.isdigit() and int(threads) >= 1):
        raise OptionError(f"POLYHEAD_THREADS must be a whole number >= 1, got {threads!r}")
    return int(threads)
