"""model.py, Triton's adapter, run without Triton."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.precision import TOLERANCE
from polyhead.predictor import NOT_FINITE, Predictor
from tests.serving import fake_triton_python_backend_utils as pb_utils
from tests.serving.fake_triton_python_backend_utils import Request, texts
from tests.serving.served_model import only, predictions, start
from tests.tiny import OVERFLOWING, overflow, write_tiny_checkpoint

WIDTH = 8


def test_answers_as_the_predictor(model: Any, served_repository: Path) -> None:
    """All four outputs have the predictor's values, in the shapes of the contract."""
    rows = [b"Rain and sport", b"word " * 200]
    response = only(model, Request(texts(*rows)))
    predictor = Predictor.load(served_repository / "gpt2_classifier" / "1" / "checkpoint")
    assert predictions(response) == predictor.predict(rows)
    np.testing.assert_array_equal(response["SCORES"], predictor.score(predictor.encode(rows)))
    assert response["SCORES"].dtype == np.float32
    assert response["TOKEN_COUNT"].dtype == np.int32
    assert response["TOKEN_COUNT"].shape == (2, 1)
    assert [row["truncated"] for row in predictions(response)] == [False, True]
    assert [head["name"] for head in json.loads(response["SCHEMA"][0, 0])["heads"]] == ["topic", "mood", "stars"]
    assert response["SCHEMA"].shape == (1, 1)


def test_requests_of_a_batch_keep_apart(model: Any) -> None:
    """Requests with different outputs and options get the same answers in a batch as alone."""
    requests = [
        Request(texts(b"schema only"), outputs=("SCHEMA",)),
        Request(texts(b"first", b"second one"), '{"top_k": 3}', ("PREDICTION",)),
        Request(texts(b"three tokens or more"), outputs=("TOKEN_COUNT",)),
        Request(texts(b"fourth"), '{"threshold": 0.0}', ("SCORES", "PREDICTION", "TOKEN_COUNT")),
    ]
    together = model.execute(requests)
    for request, response in zip(requests, together, strict=True):
        alone = only(model, request)
        assert [tensor.name for tensor in response.output_tensors] == [tensor.name for tensor in alone.output_tensors]
        for tensor in alone.output_tensors:
            if tensor.name == "SCORES":
                np.testing.assert_allclose(response[tensor.name], tensor.array, atol=1e-6)
            elif tensor.name == "PREDICTION":
                assert [list(row["heads"]["topic"]["labels"]) for row in predictions(response)] == [
                    list(row["heads"]["topic"]["labels"]) for row in predictions(alone)
                ]
            else:
                np.testing.assert_array_equal(response[tensor.name], tensor.array)
    assert len(predictions(together[1])[0]["heads"]["topic"]["labels"]) == 3
    assert len(predictions(together[3])[0]["heads"]["mood"]["labels"]) == 4


@pytest.mark.parametrize("outputs", [("SCHEMA",), ("TOKEN_COUNT",), ("TOKEN_COUNT", "SCHEMA")])
def test_only_asked_outputs_are_computed(model: Any, outputs: tuple[str, ...]) -> None:
    """If neither PREDICTION nor SCORES is requested, the model does not run."""
    model.predictor.score = None  # a call would raise, and the response be an error
    response = only(model, Request(texts(b"Rain"), outputs=outputs))
    assert tuple(tensor.name for tensor in response.output_tensors) == outputs


@pytest.mark.parametrize("text", [b"", b" \n", b"\xff\xfe", b"\x00\xc3"])
def test_a_bad_text_affects_only_itself(model: Any, text: bytes) -> None:
    """An unreadable text has an error, the sentinel and no tokens in its own row; other rows are unchanged."""
    response = only(model, Request(texts(b"Rain", text, b"Sport")))
    first, bad, last = predictions(response)
    assert list(bad) == ["error"]
    assert "heads" in first
    assert "heads" in last
    assert (response["SCORES"][1] == np.finfo(np.float32).min).all()
    assert response["TOKEN_COUNT"][1, 0] == 0
    np.testing.assert_allclose(
        response["SCORES"][[0, 2]], only(model, Request(texts(b"Rain", b"Sport")))["SCORES"], atol=1e-6
    )


def test_a_text_whose_scores_overflow_affects_only_itself(
    served_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has an error in PREDICTION and the sentinel in SCORES, and is counted; the others are unchanged."""
    repository = Path(shutil.copytree(served_repository, tmp_path / "repository"))
    overflow(repository / "gpt2_classifier" / "1" / "checkpoint")
    monkeypatch.setattr(pb_utils.MetricFamily, "registry", {})
    model = start(repository, monkeypatch, at_once_s="60")
    try:
        response, alone = (
            only(model, Request(texts(*rows)))
            for rows in ((b"Rain", OVERFLOWING.encode(), b"", b"Sport"), (b"Rain", b"Sport"))
        )
    finally:
        model.finalize()
    found = predictions(response)
    assert found[1] == {"error": NOT_FINITE}
    assert [found[0], found[3]] == predictions(alone)
    assert (response["SCORES"][1:3] == np.finfo(np.float32).min).all()
    assert b"null" not in b"".join(response["PREDICTION"][:, 0])
    assert pb_utils.MetricFamily.value("polyhead_error_texts_total") == [2]


BAD_REQUESTS = {
    "unknown parameter": (Request(texts(b"x"), '{"topk": 3}'), "topk"),
    "out of range": (Request(texts(b"x"), '{"threshold": 1.5}'), "threshold"),
    "wrong type": (Request(texts(b"x"), '{"top_k": "3"}'), "top_k"),
    "parameters not UTF-8": (Request(texts(b"x"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")), "UTF-8"),
    "parameters not JSON": (Request(texts(b"x"), "{"), "parameters"),
    "no input": (Request(None), "TEXT"),
    "no text": (Request(texts()), "[n, 1]"),
    "two columns": (Request(texts(b"x", b"y").reshape(1, 2)), "[n, 1]"),
    "one axis": (Request(texts(b"x", b"y").reshape(2)), "[n, 1]"),
    "numbers": (Request(np.zeros((1, 1), np.float32)), "BYTES"),
    "damaged bytes": (Request(RuntimeError("at file.cc:12")), "TEXT"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_affects_only_itself(model: Any, name: str) -> None:
    """A request that is wrong as a whole gets INVALID_ARG with a reason; the others of its batch are answered."""
    bad, reason = BAD_REQUESTS[name]
    before, response, after = model.execute([Request(texts(b"Rain")), bad, Request(texts(b"Sport", b""))])
    assert response.error.code == pb_utils.TritonError.INVALID_ARG
    assert reason in str(response.error)
    assert ".cc" not in str(response.error)
    assert before.error is None
    assert after["SCORES"].shape == (2, WIDTH)


def test_unexpected_exception_leaks_nothing(model: Any) -> None:
    """An unexpected exception answers every request with INTERNAL; only the log has the details."""

    def explode(encoded: Any) -> Any:
        raise RuntimeError("é secret \ud800")

    model.predictor.score = explode
    responses = model.execute([Request(texts(b"a")), Request(texts(b"b"))])
    assert [response.error.code for response in responses] == [pb_utils.TritonError.INTERNAL] * 2
    assert all("secret" not in str(r.error) and ".py" not in str(r.error) for r in responses)
    assert "secret" in pb_utils.Logger.lines[0]
    assert "test_model.py" in pb_utils.Logger.lines[0]


def test_damaged_checkpoint_fails_the_load(
    served_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing tensor file, or scores that are not finite, never gets past initialize."""
    damaged = tmp_path / "repository"
    shutil.copytree(served_repository, damaged)
    (damaged / "gpt2_classifier/1/checkpoint/model.safetensors").unlink()
    with pytest.raises(pb_utils.TritonModelException, match=r"model\.safetensors"):
        start(damaged, monkeypatch)
    monkeypatch.setattr(Predictor, "score", lambda self, encoded: np.full((len(encoded), WIDTH), np.nan, np.float32))
    with pytest.raises(pb_utils.TritonModelException, match=r"score of .* is off by nan"):
        start(served_repository, monkeypatch)


def test_other_weights_fail_the_load(served_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are whole but not those of golden.jsonl never get past initialize, at any precision."""
    other = tmp_path / "repository"
    shutil.copytree(served_repository, other)
    write_tiny_checkpoint(tmp_path / "other", seed=7)
    shutil.copyfile(tmp_path / "other" / "model.safetensors", other / "gpt2_classifier/1/checkpoint/model.safetensors")
    for precision in ("auto", "fp32"):
        monkeypatch.setenv("POLYHEAD_PRECISION", precision)
        with pytest.raises(pb_utils.TritonModelException, match=r"golden\.jsonl"):
            start(other, monkeypatch)


def test_threads_must_be_a_number(served_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POLYHEAD_THREADS is checked at start, with an error that names it."""
    monkeypatch.setenv("POLYHEAD_THREADS", "many")
    with pytest.raises(pb_utils.TritonModelException, match=r"POLYHEAD_THREADS.*'many'"):
        start(served_repository, monkeypatch)


def test_gpu_without_cuda_serves_from_the_cpu(served_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Triton sees a GPU and torch does not, the model serves from the CPU and logs it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    start(served_repository, monkeypatch, kind="GPU")
    assert "CPU" in pb_utils.Logger.lines[0]


@pytest.mark.parametrize(("kind", "wrong"), [("CPU", "sees no GPU"), ("GPU", "this torch has no CUDA")])
def test_a_required_gpu(served_repository: Path, monkeypatch: pytest.MonkeyPatch, kind: str, wrong: str) -> None:
    """A model that must use a GPU does not load on the CPU, whether the GPU or torch's CUDA is missing."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("POLYHEAD_SERVE_DEVICE", "cuda")
    with pytest.raises(pb_utils.TritonModelException, match=f"--device cuda: Triton.*{wrong}"):
        start(served_repository, monkeypatch, kind=kind)


def test_other_labels_are_told(served_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A labels.txt of other heads is a warning in the log."""
    other = tmp_path / "repository"
    shutil.copytree(served_repository, other)
    (other / "gpt2_classifier" / "1" / "labels.txt").write_text("topic/other\n", encoding="utf-8")
    start(other, monkeypatch)
    assert "labels.txt" in pb_utils.Logger.lines[0]


def test_precision_comes_from_the_environment(served_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POLYHEAD_PRECISION reaches the engine; an unknown one fails the load; the log says what runs."""
    monkeypatch.setenv("POLYHEAD_PRECISION", "fp32")
    assert start(served_repository, monkeypatch).predictor.precision == "fp32"
    (line,) = pb_utils.Logger.infos
    assert "gpt2_classifier version 1: fp32 on cpu" in line
    assert "token budget" in line
    monkeypatch.setenv("POLYHEAD_PRECISION", "fp4")
    with pytest.raises(pb_utils.TritonModelException, match=r"precision.*'fp4'"):
        start(served_repository, monkeypatch)


@pytest.mark.parametrize(("instances", "cores", "threads"), [(1, 8, 8), (2, 8, 4), (3, 8, 2), (4, 2, 1)])
def test_threads_are_the_instances_share(
    served_repository: Path, monkeypatch: pytest.MonkeyPatch, instances: int, cores: int, threads: int
) -> None:
    """Instances share the cores; POLYHEAD_THREADS overrides that."""
    monkeypatch.setattr("polyhead_serving.instance_config.usable_cores", lambda: cores)
    start(served_repository, monkeypatch, instances=instances)
    assert f" {threads} threads" in pb_utils.Logger.infos[0]
    monkeypatch.setenv("POLYHEAD_THREADS", "5")
    start(served_repository, monkeypatch, instances=instances)
    assert " 5 threads" in pb_utils.Logger.infos[0]


def test_too_little_memory_fails_the_load(served_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a micro-batch does not fit into memory, the load fails with both numbers, not a later request."""
    monkeypatch.setattr("polyhead.predictor.available_memory_bytes", lambda: 2**20)
    with pytest.raises(pb_utils.TritonModelException, match=r"2048 tokens.*MiB.* 1 MiB are left"):
        start(served_repository, monkeypatch)


def test_scores_that_are_not_finite_are_an_error(model: Any) -> None:
    """A text with a score of NaN or infinity has an error and the sentinel, so that JSON stays valid."""
    score = model.predictor.score

    def broken(encoded: Any) -> Any:
        scores = score(encoded)
        scores[0, 2] = np.inf
        return scores

    model.predictor.score = broken
    response = only(model, Request(texts(b"Rain", b"Sport in the snow")))
    first, second = predictions(response)
    assert "not finite" in first["error"]
    assert "heads" in second
    assert (response["SCORES"][0] == np.finfo(np.float32).min).all()
    assert np.isfinite(response["SCORES"]).all()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("at_once_s", "soon", "must be a number > 0, got 'soon'"),
        ("queue_texts", "0", "must be a number > 0, got '0'"),
        ("default_timeout_s", "nan", "must be a number > 0, got 'nan'"),
        ("timeout", "1", "unknown parameter timeout; known are at_once_s, default_timeout_s"),
    ],
)
def test_wrong_parameters_fail_the_load(
    served_repository: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """A parameter of config.pbtxt that is unknown or out of range fails the load with its name."""
    with pytest.raises(pb_utils.TritonModelException, match=said):
        start(served_repository, monkeypatch, **{name: value})


def test_metrics_count_what_was_answered(model: Any) -> None:
    """Texts, tokens, truncations and errors are exact; each stage is one observation per batch."""
    value = pb_utils.MetricFamily.value
    rows = [b"Rain", b"word " * 200, b" ", b"Sport"]
    response = only(model, Request(texts(*rows)))
    only(model, Request(texts(b"schema only"), outputs=("SCHEMA",)))
    assert value("polyhead_instances", precision=model.predictor.precision, device="cpu", version="1") == [1]
    assert sum(value("polyhead_fallback_instances")) == 0
    model.finalize()
    tokens = int(response["TOKEN_COUNT"].sum())
    assert value("polyhead_texts_total", model="gpt2_classifier", version="1") == [4]
    assert value("polyhead_tokens_total") == [tokens]
    assert value("polyhead_truncated_texts_total") == [1]
    assert value("polyhead_error_texts_total") == [1]
    assert sum(value("polyhead_micro_batch_texts")) == 3
    assert sum(value("polyhead_micro_batch_tokens")) == tokens
    assert sum(value("polyhead_micro_batches_total")) == len(value("polyhead_micro_batch_texts"))
    assert len(value("polyhead_queue_seconds")) == 1
    assert len(value("polyhead_stage_seconds", stage="compute")) == len(value("polyhead_micro_batch_texts"))
    assert min(value("polyhead_stage_seconds")) > 0
    assert sum(value("polyhead_instances")) == 0


def test_a_refused_precision_is_a_metric(served_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose golden rows refuse bf16 computes in float32, and a gauge and the log say so until it ends."""
    monkeypatch.setattr(pb_utils.MetricFamily, "registry", {})
    monkeypatch.delenv("POLYHEAD_PRECISION")
    monkeypatch.setattr("polyhead.predictor.fastest_precision", lambda device: "bf16")
    monkeypatch.setitem(TOLERANCE, "bf16", 1e-9)
    served = start(served_repository, monkeypatch)
    assert pb_utils.MetricFamily.value("polyhead_fallback_instances", version="1") == [1]
    assert pb_utils.MetricFamily.value("polyhead_instances", precision="fp32") == [1]
    served.finalize()
    assert sum(pb_utils.MetricFamily.value("polyhead_fallback_instances")) == 0


def test_metrics_that_fail_do_no_harm(served_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a metric's name is taken, or a message to the server fails, requests are still answered."""
    monkeypatch.setattr(pb_utils.MetricFamily, "registry", {})
    pb_utils.MetricFamily("polyhead_texts_total", "", pb_utils.MetricFamily.GAUGE)
    model = start(served_repository, monkeypatch, at_once_s="60")
    assert "different type" in pb_utils.Logger.lines[0]
    assert only(model, Request(texts(b"Rain"))).error is None
    model.finalize()

    monkeypatch.setattr(pb_utils.MetricFamily, "registry", {})
    model = start(served_repository, monkeypatch, at_once_s="60")
    monkeypatch.setattr(pb_utils.Metric, "observe", lambda self, value: 1 / 0)
    assert only(model, Request(texts(b"Rain"))).error is None
    deadline = time.monotonic() + 20
    while not pb_utils.Logger.lines:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert only(model, Request(texts(b"Rain"))).error is None
    model.finalize()
    assert ["zero" in line for line in pb_utils.Logger.lines] == [True]
