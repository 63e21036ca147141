"""Requests that end a server: refused by the proxy, survived behind it, and never passed on to the next server."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from http import HTTPStatus
from pathlib import Path

import pytest

from loadtest.local_server import LocalServer
from tests.chaos.conftest import Record
from tests.chaos.corpus import Corpus
from tests.chaos.harm import serve, server_pid, survive, wait_until_healed
from tests.chaos.load import VerifiedLoad, through_client
from tests.chaos.plain import INFER
from tests.chaos.proxy import client_of, through_proxy
from tests.e2e.plain_json import json_body
from tests.e2e.processes import model_processes

pytestmark = pytest.mark.chaos

# Appended to model.py: a text that ends tritonserver before any answer, as a crash inside Triton does.
FATAL_TEXT = """

import os as _os
import signal as _signal

_execute = TritonPythonModel.execute


def _execute_or_end_the_server(self, requests):
    for request in requests:
        texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        if b"end the server" in texts.flatten().tolist():
            _os.kill(_os.getppid(), _signal.SIGKILL)
    return _execute(self, requests)


TritonPythonModel.execute = _execute_or_end_the_server
"""


def classification(output: str) -> bytes:
    """A request that asks for the classes of an output of strings: Triton divides by zero."""
    body = json_body(["Rain."], [output])
    body["outputs"][0]["parameters"] = {"classification": 3}
    return json.dumps(body).encode()


def send(place: str, body: bytes) -> HTTPStatus | None:
    """Sends it once, without a proxy; gives the status, or None if the connection ended without an answer."""
    connection = http.client.HTTPConnection(place, timeout=30)
    with contextlib.closing(connection):
        try:
            connection.request("POST", INFER, body)
            return HTTPStatus(connection.getresponse().status)
        except (ConnectionError, http.client.HTTPException):
            return None


def test_the_proxy_refuses_a_killing_request(sound: Path, corpus: Corpus, record: Record) -> None:
    """`classification` on PREDICTION or SCHEMA gets 400 from the proxy; no server dies and nobody else notices."""
    with serve(sound) as served, through_proxy(served) as proxied:
        before = server_pid(served), model_processes(served)
        with client_of(proxied) as client, VerifiedLoad(client.scores, corpus, threads=2) as load:
            load.wait_for(20)
            for output in ("PREDICTION", "SCHEMA") * 10:
                status, *_ = proxied.ask(INFER, classification(output))
                assert status == HTTPStatus.BAD_REQUEST
            load.wait_for(20)
        assert (server_pid(served), model_processes(served)) == before, "a process died"
        record("killing request through the proxy", load.count)


def test_a_killing_request_directly(repository: Path, sound: Path, corpus: Corpus, record: Record) -> None:
    """A direct port does not protect: the server dies and is restarted; callers with a second replica lose nothing."""
    with serve(repository) as harmed, serve(sound) as healthy:

        def kill() -> None:
            assert send(harmed.url("http"), classification("PREDICTION")) is None

        load, recovery_s = survive(harmed, healthy, corpus, kill)
        record(
            "killing request directly, two replicas", load.count, recovery_s, slowest_answer_s=round(load.slowest_s, 1)
        )


def test_one_restart_costs_a_caller_nothing(repository: Path, corpus: Corpus, record: Record) -> None:
    """Callers of a single server keep trying until their deadline of 30 s, so a restart loses no request."""
    with serve(repository) as served:
        with through_client(served.url("http")) as client, VerifiedLoad(client.scores, corpus) as load:
            load.wait_for(100)
            victims, began = model_processes(served), time.monotonic()
            assert send(served.url("http"), classification("SCHEMA")) is None
            wait_until_healed(served, corpus, victims)
            recovery_s = time.monotonic() - began
            load.wait_for(100)
        record("killing request directly, a single server", load.count, recovery_s)


def test_the_proxy_passes_no_fatal_request_on(repository: Path, corpus: Corpus, record: Record) -> None:
    """A request that ends one server without an answer is not sent to the second; other callers lose nothing."""
    model = repository / "gpt2_classifier" / "1" / "model.py"
    model.write_text(model.read_text(encoding="utf-8") + FATAL_TEXT, encoding="utf-8")
    with serve(repository) as first, serve(repository) as second:
        inference = f"{first.url('http')} {second.url('http')}"
        with through_proxy(first, INFERENCE=inference) as proxied:
            with client_of(proxied) as client, VerifiedLoad(client.scores, corpus, threads=4) as load:
                load.wait_for(50)
                body = json.dumps(json_body(["end the server"], ["SCORES"])).encode()
                status, *_ = proxied.ask(INFER, body)
                assert status >= HTTPStatus.INTERNAL_SERVER_ERROR
                began = time.monotonic()
                while starts(first, second) < 3:
                    assert time.monotonic() < began + 60, "no server was ended and restarted"
                    time.sleep(0.1)
                recovery_s = time.monotonic() - began
                load.wait_for(50)
                time.sleep(5)
            assert starts(first, second) == 3, "the request was sent to the second server too"
            record("request that ends a server, two behind the proxy", load.count, recovery_s)


def starts(*servers: LocalServer) -> int:
    """How often these servers have become ready."""
    return sum(server.times_ready() for server in servers)
