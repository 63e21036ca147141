"""Ray: how it is reached, how many actors fit, and its errors as ours."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

# Read when Ray is imported: its usage reports stay at home, and its hints are none of a caller's business.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError

from polyhead.errors import PolyheadError, one_line
from polyhead_scoring.errors import ClusterError

CONNECT_S = 10.0

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Ray at an address, until the block's end.

    Args:
        address: ``local`` (a Ray of this machine's cores, started here and ended with the block), ``auto`` (the cluster
            to which this machine belongs, or that RAY_ADDRESS names), ``host:port`` or ``ray://host:port``; empty
            within a task, which is connected.

    Raises:
        ClusterError: there is none.
    """
    if not address:
        yield
        return
    _check_reachable(address)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=address.startswith("ray://"), **own)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[-1]  # below it stands the server's traceback
        raise ClusterError(f"--address {address}: no Ray answers there ({cause})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes, and then ends the process."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise ClusterError(f"--address {address}: nothing answers there ({error})") from error


def run_on_a_node(function: Callable[[Argument], Result], argument: Argument) -> Result:
    """Calls a function in a task of the cluster."""
    result: Result = ray.get(ray.remote(num_cpus=0, max_retries=0)(function).remote(argument))
    return result


def cluster_resources() -> dict[str, float]:
    """How much of what the cluster has, as it stands."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def fitting_actors(has: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many actors a cluster has room for.

    Raises:
        ClusterError: not one.
    """
    found = int(min(has.get(name, 0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each))
    if not found:
        raise ClusterError(
            f"no actor fits: one needs {cpus:g} CPUs and {gpus:g} GPUs, "
            f"the whole cluster has {has.get('CPU', 0):g} and {has.get('GPU', 0):g}"
        )
    return found


@contextmanager
def naming_errors() -> Iterator[None]:
    """Makes one line of what Ray raises: our own error of a task as it was, all else with the cause that counts.

    Raises:
        ScoringError: of a task, or a ClusterError.
    """
    try:
        yield
    except Exception as error:  # Ray Data wraps and re-raises in many ways
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, PolyheadError) and not isinstance(cause, RayError):
                raise cause from error
        if not any(isinstance(cause, RayError) for cause in causes):
            raise
        raise ClusterError(f"a task was lost for good ({one_line(causes[-1])})") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = getattr(current, "cause", None) or current.__cause__
