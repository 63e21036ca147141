"""What a server counts about the model: Triton's statistics of one replica and version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyhead_client.errors import BadResponseError, one_line


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Counts since the server started.

    Attributes:
        replica: the server's address.
        version: the model's version.
        inferences: texts that were answered.
        executions: batches in which they were computed.
        successes, failures: requests that succeeded and failed.
        queue_ms, compute_ms: mean time a successful request waited and was computed; 0 without requests.
    """

    replica: str
    version: str
    inferences: int
    executions: int
    successes: int
    failures: int
    queue_ms: float
    compute_ms: float

    @classmethod
    def read(cls, reply: Any, replica: str) -> list[ModelStatistics]:
        """Reads Triton's JSON; counts are numbers over HTTP, strings over gRPC, and absent there when 0.

        Raises:
            BadResponseError: it is something else.
        """
        try:
            return [_read_model(model, replica) for model in reply["model_stats"]]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BadResponseError(f"statistics are not Triton's: {one_line(repr(error))}") from error


def _read_model(model: Any, replica: str) -> ModelStatistics:
    times = model.get("inference_stats", {})

    def mean_ms(name: str) -> float:
        duration = times.get(name, {})
        count = int(duration.get("count", 0))
        return int(duration.get("ns", 0)) / count / 1e6 if count else 0.0

    return ModelStatistics(
        replica=replica,
        version=str(model["version"]),
        inferences=int(model.get("inference_count", 0)),
        executions=int(model.get("execution_count", 0)),
        successes=int(times.get("success", {}).get("count", 0)),
        failures=int(times.get("fail", {}).get("count", 0)),
        queue_ms=mean_ms("queue"),
        compute_ms=mean_ms("compute_input") + mean_ms("compute_infer") + mean_ms("compute_output"),
    )
