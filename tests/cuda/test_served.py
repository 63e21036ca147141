"""What is served, in the precision that is served: predictor and model.py, on CPU and GPU.

Other tests compute in float32, which tests/conftest.py sets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyhead.engine.cuda.attention import efficient_attention, padded_attention
from polyhead.engine.cuda.forward import CUDAForward
from polyhead.engine.cuda.packed import graph_shapes
from polyhead.export import export_checkpoint
from polyhead.precision import TOLERANCE, fastest_precision
from polyhead.predictor import Predictor
from tests.cuda.devices import GPU
from tests.serving import fake_triton_python_backend_utils as pb_utils
from tests.serving.fake_triton_python_backend_utils import Request, texts
from tests.serving.served_model import start
from tests.tiny import MAX_LENGTH, TEXTS

MANY = [f"{text} {n}" for n in range(30) for text in TEXTS]


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A device, and no precision from the environment."""
    monkeypatch.delenv("POLYHEAD_PRECISION")
    name: str = request.param
    return name


@pytest.fixture
def exact(base_checkpoint: Path) -> np.ndarray:
    """The scores of MANY in float32 on the CPU."""
    predictor = Predictor.load(base_checkpoint, precision="fp32")
    return predictor.score(predictor.encode(MANY))


def assert_within_tolerance(scores: np.ndarray, exact: np.ndarray, precision: Any) -> None:
    """Labels' scores are as near as the precision promises; the last column is a regression without a unit."""
    assert np.abs(scores - exact)[:, :-1].max() <= TOLERANCE[precision]
    assert np.abs(scores - exact)[:, -1].max() <= 2 * TOLERANCE[precision] * max(1.0, np.abs(exact[:, -1]).max())


def test_auto_is_the_fastest_precision(base_checkpoint: Path, device: str, exact: np.ndarray) -> None:
    """``auto`` takes bf16 where the hardware has it, on a GPU with all fast paths; the scores keep the tolerance."""
    predictor = Predictor.load(base_checkpoint, device)
    assert predictor.precision == fastest_precision(torch.device(device))
    assert predictor.refused_precision is None
    assert predictor.check_golden() <= TOLERANCE[predictor.precision]
    assert predictor.warm_up() >= MAX_LENGTH
    forward = predictor._engine.forward
    if isinstance(forward, CUDAForward):
        assert predictor.precision == "bf16"
        assert forward.attention not in (padded_attention, efficient_attention)
        assert forward.fuses_gelu
        assert forward.graphs
        assert forward.graphs.shapes == graph_shapes(MAX_LENGTH)
        assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    encoded = predictor.encode(MANY)
    together = predictor.score(encoded)
    alone = np.concatenate([predictor.score([text]) for text in encoded[:20]])
    assert_within_tolerance(together, exact, predictor.precision)
    assert_within_tolerance(alone, exact[:20], predictor.precision)


def test_a_refused_precision_falls_to_fast_float32(
    base_checkpoint: Path, device: str, exact: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """If bf16 misses its tolerance, float32 serves: on a GPU with packed attention and graphs; and it is said."""
    monkeypatch.setattr("polyhead.predictor.fastest_precision", lambda device: "bf16")
    monkeypatch.setitem(TOLERANCE, "bf16", 1e-9)
    predictor = Predictor.load(base_checkpoint, device)
    assert (predictor.precision, predictor.refused_precision) == ("fp32", "bf16")
    assert "serving in fp32" in caplog.text
    forward = predictor._engine.forward
    if isinstance(forward, CUDAForward):
        assert forward.attention is efficient_attention
        assert forward.graphs
        assert forward.graphs.shapes
    np.testing.assert_allclose(predictor.score(predictor.encode(MANY)), exact, atol=1e-4)


@pytest.fixture
def model(base_checkpoint: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """model.py as Triton would start it on the device."""
    export_checkpoint(base_checkpoint, tmp_path / "repository")
    monkeypatch.setattr(pb_utils.MetricFamily, "registry", {})
    served = start(tmp_path / "repository", monkeypatch, kind="GPU" if device == "cuda" else "CPU", at_once_s="60")
    yield served
    served.finalize()


def test_the_model_serves_on_the_device(model: Any, device: str, exact: np.ndarray) -> None:
    """model.py answers many requests at once within the tolerance that SCHEMA names, and its gauge names the device."""
    place = "cuda:0" if device == "cuda" else "cpu"
    assert str(model.predictor.device) == place
    precision = model.predictor.precision
    assert pb_utils.MetricFamily.value("polyhead_instances", precision=precision, device=place) == [1]
    parts = [MANY[first : first + 7] for first in range(0, len(MANY), 7)]
    requests = [Request(texts(*(text.encode() for text in part)), outputs=("SCORES", "SCHEMA")) for part in parts]
    responses = model.execute(requests)
    assert_within_tolerance(np.concatenate([one["SCORES"] for one in responses]), exact, precision)
    schema = json.loads(responses[0]["SCHEMA"][0, 0])
    assert (schema["precision"], schema["tolerance"]) == (precision, TOLERANCE[precision])
