"""model.py in the test's process, initialized as Triton does it."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.serving import fake_triton_python_backend_utils as pb_utils
from tests.serving.fake_triton_python_backend_utils import Request

SECONDS = 20  # how long a test waits for a thread


def start(
    repository: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "CPU", instances: int = 1, **parameters: str
) -> Any:
    """Imports model.py and initializes it with these parameters of config.pbtxt; torch keeps its threads."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    monkeypatch.setattr(pb_utils.Logger, "lines", [])
    monkeypatch.setattr(pb_utils.Logger, "infos", [])
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    monkeypatch.setattr(logging.getLogger("polyhead"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("polyhead"), "propagate", False)
    spec = importlib.util.spec_from_file_location("served_model", repository / "gpt2_classifier" / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "served_model", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    served = module.TritonPythonModel()
    served.initialize(
        {
            "model_config": json.dumps(
                {
                    "max_batch_size": 64,
                    "instance_group": [{"kind": f"KIND_{kind}", "count": instances}],
                    "parameters": {name: {"string_value": value} for name, value in parameters.items()},
                }
            ),
            "model_name": "gpt2_classifier",
            "model_repository": str(repository / "gpt2_classifier"),
            "model_version": "1",
            "model_instance_kind": kind,
            "model_instance_device_id": "0",
        }
    )
    return served


def only(model: Any, request: Request) -> Any:
    """The response to a request that is alone in its batch."""
    (response,) = model.execute([request])
    return response


def predictions(response: Any) -> list[Any]:
    """PREDICTION, parsed."""
    return [json.loads(row) for row in response["PREDICTION"][:, 0]]


class HeldEngine:
    """Takes the place of a model's ``predictor.score``, which then waits until the test lets it go on.

    Attributes:
        has_begun: whether texts are with the engine.
        calls: the number of texts of each call.
    """

    def __init__(self, model: Any) -> None:
        self.has_begun = threading.Event()
        self.calls: list[int] = []
        self._may_end = threading.Event()
        self._score = model.predictor.score
        model.predictor.score = self._held_score

    def release(self) -> None:
        """From now on nothing waits."""
        self._may_end.set()

    def _held_score(self, encoded: Any) -> Any:
        self.calls.append(len(encoded))
        self.has_begun.set()
        assert self._may_end.wait(SECONDS)
        return self._score(encoded)
