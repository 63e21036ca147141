"""The wire contract on a real tritonserver: each protocol gives the same answers, and bad input affects only itself."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from loadtest.local_server import LocalServer
from polyhead.decode import DecodeOptions
from polyhead.predictor import Predictor
from tests.e2e.plain_json import infer_json, json_body
from tests.tiny import TEXTS

MODEL = "gpt2_classifier"
OUTPUTS = ["PREDICTION", "SCORES", "TOKEN_COUNT", "SCHEMA"]
BLANK = "the text is empty or blank"
PROTOCOLS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


def infer(
    served: LocalServer,
    protocol: str,
    texts: list[str | bytes],
    parameters: dict[str, Any] | None = None,
    outputs: list[Any] | None = None,
) -> Any:
    """Asks over binary HTTP or gRPC through NVIDIA's client."""
    library: ModuleType = PROTOCOLS[protocol]
    tensor = library.InferInput("TEXT", [len(texts), 1], "BYTES")
    rows = [text if isinstance(text, bytes) else text.encode() for text in texts]
    tensor.set_data_from_numpy(np.array(rows, dtype=np.object_).reshape(-1, 1))
    requested = outputs or [library.InferRequestedOutput(name) for name in OUTPUTS]
    with library.InferenceServerClient(served.url(protocol)) as client:
        return client.infer(MODEL, [tensor], outputs=requested, parameters=parameters)


def predictions(result: Any) -> list[dict[str, Any]]:
    """PREDICTION of a client's result."""
    return [json.loads(row) for row in result.as_numpy("PREDICTION")[:, 0]]


def assert_same_answers(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal except for the last digits of scores, which depend on the builds of NumPy and torch."""
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        for name, head in other.get("heads", {}).items():
            for field, value in head.items():
                numbers = field in {"scores", "value"}
                assert one["heads"][name][field] == (pytest.approx(value, abs=1e-5) if numbers else value)
        rest = {key: value for key, value in other.items() if key != "heads"}
        assert rest == {key: value for key, value in one.items() if key != "heads"}


def test_all_protocols_agree_with_the_predictor(served: LocalServer, predictor: Predictor) -> None:
    """Binary HTTP, bare JSON and gRPC give byte-equal answers, which are the predictor's."""
    options = {"top_k": 2, "threshold": 0.3, "reject_below": 0.4}
    binary, grpc = (infer(served, protocol, list(TEXTS), options) for protocol in ("http", "grpc"))
    status, bare = infer_json(served.url("http"), json_body(TEXTS, OUTPUTS, **options))
    assert status == 200
    data = {output["name"]: output["data"] for output in bare["outputs"]}

    for name in OUTPUTS:
        np.testing.assert_array_equal(binary.as_numpy(name), grpc.as_numpy(name))
    for name in ("PREDICTION", "SCHEMA"):
        assert [row.encode() for row in data[name]] == binary.as_numpy(name)[:, 0].tolist()
    np.testing.assert_array_equal(np.array(data["SCORES"], np.float32), binary.as_numpy("SCORES").ravel())
    assert data["TOKEN_COUNT"] == binary.as_numpy("TOKEN_COUNT")[:, 0].tolist()

    assert_same_answers(predictions(binary), predictor.predict(TEXTS, DecodeOptions(**options)))
    encoded = predictor.encode(TEXTS)
    np.testing.assert_allclose(binary.as_numpy("SCORES"), predictor.score(encoded), atol=1e-5)
    assert binary.as_numpy("TOKEN_COUNT")[:, 0].tolist() == [text.token_count for text in encoded]
    assert binary.as_numpy("SCHEMA")[0, 0] == predictor.schema_json()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("bad", ["", " \t\n", b"\xff\xfe"])
def test_bad_text_spoils_itself(served: LocalServer, predictor: Predictor, protocol: str, bad: str | bytes) -> None:
    """A bad text gets its own error; the other texts' answers stay the same."""
    result = infer(served, protocol, ["Rain.", bad, "The striker scored."])
    first, error, last = predictions(result)
    assert list(error) == ["error"]
    assert_same_answers([first, last], predictor.predict(["Rain.", "The striker scored."]))
    assert (result.as_numpy("SCORES") == np.finfo(np.float32).min).all(axis=1).tolist() == [False, True, False]
    assert result.as_numpy("TOKEN_COUNT")[1, 0] == 0


def test_long_text_is_truncated_and_says_so(served: LocalServer, predictor: Predictor) -> None:
    """A text longer than max_length is cut there; a text of a few words is not truncated."""
    long, short = predictions(infer(served, "http", ["word " * 500, "word"]))
    assert (long["truncated"], long["token_count"]) == (True, predictor.max_length)
    assert short["truncated"] is False


def test_literal_end_of_text_is_text(served: LocalServer, predictor: Predictor) -> None:
    """The characters <|endoftext|> inside a text are read as plain text, and so is what follows."""
    texts = ["Literal <|endoftext|> in the middle", "Literal <|endoftext|> somewhere else", "<|endoftext|>"]
    result = infer(served, "grpc", list(texts))
    assert_same_answers(predictions(result), predictor.predict(texts))
    scores = result.as_numpy("SCORES")
    assert not np.allclose(scores[0], scores[1], atol=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_classification_extension_names_columns(served: LocalServer, predictor: Predictor, protocol: str) -> None:
    """Triton's classification extension gives SCORES' best columns as ``score:index:head/label``."""
    library = PROTOCOLS[protocol]
    result = infer(served, protocol, ["Rain."], outputs=[library.InferRequestedOutput("SCORES", class_count=3)])
    columns = predictor.schema.column_names()
    scores = predictor.score(predictor.encode(["Rain."]))[0]
    best = np.argsort(-scores)[:3]
    rows = [row.decode().split(":", 2) for row in result.as_numpy("SCORES").ravel()]
    assert [row[2] for row in rows] == [columns[index] for index in best]
    assert [float(row[0]) for row in rows] == pytest.approx(scores[best], abs=1e-4)


def text_input(**fields: Any) -> dict[str, Any]:
    """A JSON body whose input differs from a good one."""
    good = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["Rain."]}
    return {"inputs": [good | fields], "outputs": [{"name": "PREDICTION"}]}


BAD_REQUESTS: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "unknown parameter": (json_body(["Rain."], ["PREDICTION"], topk=3), "topk"),
    "out of range": (json_body(["Rain."], ["PREDICTION"], threshold=2.0), "threshold"),
    "a bound out of range": (json_body(["Rain."], ["PREDICTION"], reject_below=1.5), "reject_below"),
    "wrong type": (json_body(["Rain."], ["PREDICTION"], top_k="many"), "top_k"),
    "one axis": (text_input(shape=[1]), "shape"),
    "two columns": (text_input(shape=[1, 2], data=["a", "b"]), "shape"),
    "no rows": (text_input(shape=[0, 1], data=[]), ""),
    "rows that wrap": (text_input(shape=[2**32, 1]), ""),
    "too many rows": (text_input(shape=[65, 1], data=["a"] * 65), "64"),
    "numbers": (text_input(datatype="FP32", data=[1.0]), "type"),
    "other name": (text_input(name="TXT"), "TXT"),
    "other output": (json_body(["Rain."], ["LOGITS"]), "LOGITS"),
    "parameters not UTF-8": (
        json.dumps(json_body(["Rain."], ["PREDICTION"], top_k="@")).encode().replace(b"@", b"\xff"),
        "",
    ),
}


def test_a_bad_request_affects_only_itself(served: LocalServer, predictor: Predictor) -> None:
    """Wrong requests get 400 with a reason and without a place in the code; good ones among them are answered."""
    expected = predictor.predict(["Rain."])

    def good() -> None:
        for _ in range(20):
            status, answer = infer_json(served.url("http"), json_body(["Rain."], ["PREDICTION"]))
            assert status == 200
            assert_same_answers([json.loads(answer["outputs"][0]["data"][0])], expected)

    def bad() -> None:
        for name, (body, reason) in BAD_REQUESTS.items():
            status, answer = infer_json(served.url("http"), body)
            assert status == 400, f"{name}: {answer}"
            assert reason in answer["error"], name
            assert ".py" not in answer["error"], name

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(work) for work in (good, bad, good, bad, good, bad)]:
            future.result()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bad_parameter_over_both_protocols(served: LocalServer, protocol: str) -> None:
    """The error of an unknown parameter names it and what is allowed."""
    with pytest.raises(InferenceServerException, match=r"topk.*top_k") as caught:
        infer(served, protocol, ["Rain."], {"topk": 1})
    assert caught.value.status() in {"400", "StatusCode.INVALID_ARGUMENT"}


def test_timeout_and_priority_are_tritons_own(served: LocalServer) -> None:
    """Parameters that Triton itself understands do not reach the model as unknown ones."""
    body = json_body(["Rain."], ["PREDICTION"], timeout=5_000_000, top_k=1)
    assert infer_json(served.url("http"), body)[0] == 200


def test_only_asked_outputs_come_back(served: LocalServer) -> None:
    """The answer holds the outputs that were asked for."""
    status, answer = infer_json(served.url("http"), json_body(["Rain."], ["TOKEN_COUNT"]))
    assert status == 200
    assert [output["name"] for output in answer["outputs"]] == ["TOKEN_COUNT"]


def test_malformed_json_is_refused(served: LocalServer) -> None:
    """A body that is no JSON gets Triton's own error, 500 in this version, and affects no other request."""
    status, answer = infer_json(served.url("http"), b"{")
    assert status in {400, 500}
    assert "JSON" in answer["error"]
    assert infer_json(served.url("http"), json_body(["Rain."], ["PREDICTION"]))[0] == 200


def test_blank_text_in_bare_json(served: LocalServer) -> None:
    """A curl user sees the reason for a text without an answer."""
    _, answer = infer_json(served.url("http"), json_body([" "], ["PREDICTION"]))
    assert json.loads(answer["outputs"][0]["data"][0]) == {"error": BLANK}
