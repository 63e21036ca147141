"""The client over gRPC against a tiny gRPC server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from polyhead_client import BadResponseError, Client, ModelNotFoundError, RequestRejectedError, ServerUnreachableError
from tests.client.fake_triton import ANSWER, pack, unpack

grpc = pytest.importorskip("grpc")


@pytest.fixture
def grpc_server() -> Iterator[dict[str, Any]]:
    """A tiny gRPC Triton that answers PREDICTION, and what it was asked last."""
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    seen: dict[str, Any] = {}

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
            if request.model_name == "missing":
                context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'missing' is not found")
            texts = unpack(request.raw_input_contents[0])
            seen.update(texts=texts, parameters=dict(request.parameters))
            if texts == ["reject"]:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "TEXT: no")
            response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
            output = response.outputs.add(name="PREDICTION", datatype="BYTES")
            output.shape.extend([len(texts), 1])
            response.raw_output_contents.append(pack([json.dumps(ANSWER).encode()] * len(texts)))
            return response

    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    seen["url"] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield seen
    server.stop(None).wait()


def test_grpc_answers_as_http(grpc_server: dict[str, Any]) -> None:
    """Texts, options and answers are as over HTTP; a whole-number threshold still travels as a float."""
    with Client(grpc_server["url"], protocol="grpc") as client:
        predictions = client.classify(["a\0", "naïve 🦜"], top_k=2, threshold=1)
    assert grpc_server["texts"] == ["a\0", "naïve 🦜"]
    assert grpc_server["parameters"]["top_k"].int64_param == 2
    assert grpc_server["parameters"]["threshold"].double_param == 1.0
    assert [prediction.to_json() for prediction in predictions] == [ANSWER, ANSWER]


def test_grpc_errors(grpc_server: dict[str, Any]) -> None:
    """gRPC statuses map to the same tree as HTTP codes."""
    with Client(grpc_server["url"], "missing", "grpc") as client, pytest.raises(ModelNotFoundError):
        client.classify("text")
    with Client(grpc_server["url"], protocol="grpc") as client:
        with pytest.raises(RequestRejectedError, match="TEXT: no") as caught:
            client.classify("reject")
        assert caught.value.status == "INVALID_ARGUMENT"
    with Client(grpc_server["url"]) as client, pytest.raises(BadResponseError, match="http port"):
        client.classify("a client of the other protocol")
    with Client("127.0.0.1:1", protocol="grpc", timeout_s=2) as client, pytest.raises(ServerUnreachableError):
        client.classify("text")
