"""Both clients over gRPC, with a small gRPC server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from polyhead_client import (
    BadResponseError,
    Client,
    ModelNotFoundError,
    RequestRejectedError,
    RequestTimeoutError,
    RetryPolicy,
    ServerFailedError,
    ServerOverloadedError,
    ServerUnreachableError,
)
from tests.client.fake_triton import ANSWER
from tests.client.surface import Ask, blocking

grpc = pytest.importorskip("grpc")


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Makes a gRPC client of each kind."""
    return lambda *arguments, **options: blocking(request.param, None, *arguments, protocol="grpc", **options)


@pytest.fixture
def grpc_server() -> Iterator[dict[str, Any]]:
    """A small gRPC Triton that answers PREDICTION: its last request, and statuses to answer with instead."""
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    seen: dict[str, Any] = {"abort": []}

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
            if request.model_name == "missing":
                context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'missing' is not found")
            texts = [text.decode() for text in deserialize_bytes_tensor(request.raw_input_contents[0])]
            metadata = dict(context.invocation_metadata())
            seen.update(texts=texts, parameters=dict(request.parameters), metadata=metadata)
            if seen["abort"]:
                context.abort(*seen["abort"].pop(0))
            if texts == ["slow"]:
                time.sleep(1)
            response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
            output = response.outputs.add(name="PREDICTION", datatype="BYTES")
            output.shape.extend([len(texts), 1])
            answers = [{**ANSWER, "token_count": int(text) if text.isdigit() else 4} for text in texts]
            rows = np.array([json.dumps(answer).encode() for answer in answers], dtype=np.object_)
            response.raw_output_contents.append(serialize_byte_tensor(rows).item())
            return response

        def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
            return service_pb2.ModelReadyResponse(ready=True)

    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    seen["url"] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield seen
    server.stop(None).wait()


def test_grpc_answers_as_http(ask: Ask, grpc_server: dict[str, Any]) -> None:
    """Texts, options and answers are as over HTTP; a whole-number threshold still travels as a float."""
    with ask(grpc_server["url"], api_key="s3cret", headers={"X-Team": "search"}, user_agent="crawler/2") as client:
        predictions = client.classify(["a\0", "naïve 🦜"], top_k=2, threshold=1)
    assert grpc_server["texts"] == ["a\0", "naïve 🦜"]
    assert grpc_server["parameters"]["top_k"].int64_param == 2
    assert grpc_server["parameters"]["threshold"].double_param == 1.0
    assert grpc_server["metadata"]["authorization"] == "Bearer s3cret"
    assert grpc_server["metadata"]["x-team"] == "search"
    assert grpc_server["metadata"]["user-agent"].startswith("crawler/2 polyhead-client")
    assert [prediction.to_json() for prediction in predictions] == [ANSWER, ANSWER]


def test_the_rest_of_the_surface(ask: Ask, grpc_server: dict[str, Any]) -> None:
    """Batches, readiness and streams work too."""
    with ask(grpc_server["url"], batch_size=3) as client:
        stream = client.stream(map(str, range(50)), concurrency=4)
        assert [prediction.token_count for prediction in stream] == list(range(50))
        assert len(grpc_server["texts"]) <= 3
        assert client.is_ready()
        assert client.is_ready(canary=False)
        client.wait_until_ready(5)


def test_grpc_errors(ask: Ask, grpc_server: dict[str, Any]) -> None:
    """gRPC statuses map to the same tree as HTTP codes."""
    url, code = grpc_server["url"], grpc.StatusCode
    with ask(url, "missing") as client, pytest.raises(ModelNotFoundError):
        client.classify("text")
    with ask(url, retry=RetryPolicy(max_attempts=1)) as client:
        for status, kind in [
            (code.INVALID_ARGUMENT, RequestRejectedError),
            (code.UNAVAILABLE, ServerOverloadedError),
            (code.INTERNAL, ServerFailedError),
        ]:
            grpc_server["abort"] = [(status, "TEXT: no")]
            with pytest.raises(kind, match="TEXT: no") as caught:
                client.classify("text")
            assert caught.value.status == status.name
            assert caught.value.replica == url
        with pytest.raises(RequestTimeoutError, match=r"within 0\.3 s"):
            client.classify("slow", timeout_s=0.3)
    with ask("127.0.0.1:1", timeout_s=2) as client, pytest.raises(ServerUnreachableError):
        client.classify("text")


def test_other_protocol(grpc_server: dict[str, Any]) -> None:
    """An HTTP client on the gRPC port gets an error that says so."""
    with Client(grpc_server["url"]) as client, pytest.raises(BadResponseError, match="http port"):
        client.classify("a client of the other protocol")


def test_shed_load_is_asked_again_over_grpc(ask: Ask, grpc_server: dict[str, Any]) -> None:
    """UNAVAILABLE from a running server is retried, and a replica that is not there is skipped."""
    grpc_server["abort"] = [(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")]
    with ask(["127.0.0.1:1", grpc_server["url"]]) as client:
        assert [client.classify(str(number)).token_count for number in range(6)] == list(range(6))


def test_threads_share_a_grpc_client(grpc_server: dict[str, Any]) -> None:
    """With many threads on one client, every text gets its own answer."""
    wrong: list[object] = []

    def work(client: Client, first: int) -> None:
        try:
            for number in range(first, first + 30):
                got = [one.token_count for one in client.classify([str(number), str(number + 1)])]
                if got != [number, number + 1]:
                    wrong.append(got)
        except Exception as error:
            wrong.append(error)

    with Client(grpc_server["url"], protocol="grpc") as client:
        threads = [threading.Thread(target=work, args=(client, 1000 * number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
