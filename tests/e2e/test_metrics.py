"""The model's metrics, responses that are sent later and cancelled requests, on a real tritonserver."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from loadtest.local_server import READY_TIMEOUT_S, LocalServer, free_ports, port_options, serve_command
from polyhead.export import export_checkpoint
from polyhead.predictor import Predictor
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.processes import ONE_THREAD, model_processes
from tests.e2e.test_answers import assert_same_answers, predictions
from tests.tiny import TEXTS

MODEL = "gpt2_classifier"
KEY = "k" * 16
ADMIN = {"triton-grpc-protocol-polyhead-admin-key": KEY}


@pytest.fixture(scope="module")
def quiet(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server of its own: one canary only, at the start; responses are sent later, and all cancels are noticed."""
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("quiet") / "repository"))
    for file, patient, eager in (
        (copy / MODEL / "config.pbtxt", '"at_once_s" value { string_value: "0.1" }', '"0.000001" }'),
        (copy / MODEL / "1" / "model.py", "CANCEL_AFTER_S = 0.1", "CANCEL_AFTER_S = 0.0"),
    ):
        text = file.read_text(encoding="utf-8")
        assert text.count(patient) == 1
        replacement = patient.replace('"0.1" }', eager) if file.suffix == ".pbtxt" else eager
        file.write_text(text.replace(patient, replacement), encoding="utf-8")
    with LocalServer(copy, "--probe-interval-s", "3600", environment=ONE_THREAD) as running:
        yield running


def value(place: str, name: str, **labels: str) -> float:
    """The sum of a metric's values with these labels."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{place}/metrics", timeout=10) as response:
        text = response.read().decode()
    rows = re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
    return sum(float(number) for row, number in rows if all(f'{key}="{label}"' in row for key, label in labels.items()))


def wait_until(is_so: Callable[[], bool]) -> None:
    """Waits until it is so: metrics arrive a moment after the answers."""
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def stopped(served: LocalServer) -> Iterator[None]:
    """Stops the model process meanwhile, so that requests pile up."""
    (process,) = model_processes(served)
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def text_input(*texts: str) -> list[Any]:
    """The input of a gRPC request."""
    tensor = tritonclient.grpc.InferInput("TEXT", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_).reshape(-1, 1))
    return [tensor]


def test_counts_are_exact(quiet: LocalServer, predictor: Predictor) -> None:
    """Texts, tokens, truncations and errors count what was sent; what is computed counts equal texts once."""
    place = quiet.url("metrics")
    names = ["texts_total", "tokens_total", "truncated_texts_total", "error_texts_total"]
    names += ["micro_batch_texts_sum", "micro_batch_tokens_sum", "queue_seconds_count"]
    of_canary = ("texts_total", "queue_seconds_count", "micro_batch_texts_count", "micro_batch_tokens_count")
    wait_until(lambda: all(value(place, f"polyhead_{name}") == 1 for name in of_canary))
    before = {name: value(place, f"polyhead_{name}") for name in names}
    for _ in range(2):
        assert infer_json(quiet.url("http"), json_body([*TEXTS, " "], ["PREDICTION"]))[0] == 200
    encoded = predictor.encode(TEXTS)
    tokens, truncated = sum(text.token_count for text in encoded), sum(text.truncated for text in encoded)
    assert truncated > 0
    expected = [2 * (len(TEXTS) + 1), 2 * tokens, 2 * truncated, 2, 2 * len(TEXTS), 2 * tokens, 2]
    moved = dict(zip(names, expected, strict=True))
    wait_until(lambda: {name: value(place, f"polyhead_{name}") - before[name] for name in names} == moved)
    for stage in ("tokenize", "compute", "decode"):
        assert value(place, "polyhead_stage_seconds_sum", model=MODEL, version="1", stage=stage) > 0
    assert value(place, "polyhead_instances", precision=predictor.precision, device="cpu") == 1
    assert value(place, "polyhead_micro_batches_total") == value(place, "polyhead_micro_batch_texts_count") >= 2
    assert value(place, "polyhead_waiting_texts") == value(place, "polyhead_waiting_tokens") == 0


def test_requests_that_pile_up_are_answered_one_by_one(quiet: LocalServer, predictor: Predictor) -> None:
    """Forty requests of several micro-batches each get their own answer, and Triton counts them."""
    place = quiet.url("metrics")
    done: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    sizes = [1 + number % 3 for number in range(40)]
    texts = [[f"{TEXTS[(n + k) % len(TEXTS)]} {n} {k}" for k in range(size)] for n, size in enumerate(sizes)]
    encoded = predictor.encode([text for rows in texts for text in rows])
    assert sum(text.token_count for text in encoded) > predictor.token_budget
    batches = value(place, "nv_inference_exec_count")
    answered = value(place, "nv_inference_request_success")
    outputs = [tritonclient.grpc.InferRequestedOutput("PREDICTION")]
    with tritonclient.grpc.InferenceServerClient(quiet.url("grpc")) as client:
        with stopped(quiet):
            for n, rows in enumerate(texts):
                client.async_infer(
                    MODEL, text_input(*rows), lambda result, error, n=n: done.put((n, result, error)), outputs=outputs
                )
            time.sleep(0.5)
        results = {}
        for _ in texts:
            n, result, error = done.get(timeout=20)
            assert error is None
            results[n] = result
    for n, rows in enumerate(texts):
        assert_same_answers(predictions(results[n]), predictor.predict(rows))
    wait_until(lambda: value(place, "nv_inference_request_success") - answered == len(texts))
    assert value(place, "nv_inference_exec_count") - batches < len(texts) / 2
    assert value(place, "nv_inference_pending_request_count") == 0


def test_cancelled_request_is_dropped(quiet: LocalServer) -> None:
    """A request that is cancelled over gRPC before it is computed is not computed."""
    place = quiet.url("metrics")
    errors: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(quiet.url("grpc")) as client:
        with stopped(quiet):
            call = client.async_infer(MODEL, text_input("Rain."), lambda result, error: errors.put(error))
            time.sleep(0.3)
            call.cancel()
            assert "CANCELLED" in str(errors.get(timeout=10))
            time.sleep(0.3)
        wait_until(lambda: value(place, "polyhead_dropped_requests_total", reason="cancelled") == 1)
        assert client.infer(MODEL, text_input("Rain.")).as_numpy("PREDICTION").shape == (1, 1)


@contextmanager
def explicit(repository: Path) -> Iterator[dict[str, int]]:
    """tritonserver with the flags of --dry-run, but with models that are loaded by name."""
    ports = free_ports()
    command = [*serve_command(), "--repository", str(repository), "--dry-run", *port_options(ports)]
    environment = {**os.environ, "POLYHEAD_ADMIN_KEY": KEY}
    script = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    script = script.replace("--model-control-mode=none", "--model-control-mode=explicit '--load-model=*'")
    with tempfile.TemporaryDirectory() as scratch:  # for the script's folder of backends
        server = subprocess.Popen(
            ["sh", "-e", "-c", script], start_new_session=True, env=environment | {"TMPDIR": scratch}
        )
        try:
            yield ports
        finally:
            server.terminate()
            try:
                server.wait(30)
            finally:
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait()


def test_models_share_families_and_versions_reload(repository: Path, tmp_path: Path) -> None:
    """Two models, a reload of a version and a next version all load; each counts under its own labels."""
    checkpoint = repository / MODEL / "1" / "checkpoint"
    for name in (MODEL, "other"):
        export_checkpoint(checkpoint, tmp_path, name)
    with explicit(tmp_path) as ports, tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports['grpc']}") as client:
        place = f"127.0.0.1:{ports['metrics']}"

        def ask(name: str) -> None:
            client.infer(name, text_input("Rain.", "Sport."))

        def count(version: str, name: str = MODEL) -> tuple[float, float]:
            labels = {"model": name, "version": version}
            return value(place, "polyhead_instances", **labels), value(place, "polyhead_texts_total", **labels)

        wait_for_server(client)
        ask(MODEL)
        ask("other")
        wait_until(lambda: (count("1"), count("1", "other")) == ((1, 2), (1, 2)))
        model_file = tmp_path / MODEL / "1" / "model.py"
        model_file.write_text(model_file.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
        client.load_model(MODEL, headers=ADMIN)
        ask(MODEL)
        wait_until(lambda: (count("1"), count("1", "other")) == ((1, 4), (1, 2)))
        export_checkpoint(checkpoint, tmp_path, MODEL, version=2)
        client.load_model(MODEL, headers=ADMIN)
        ask(MODEL)
        wait_until(lambda: (count("1"), count("2")) == ((0, 4), (1, 2)))


def wait_for_server(client: tritonclient.grpc.InferenceServerClient) -> None:
    """Waits until all models are loaded."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            if client.is_server_ready():
                return
        except InferenceServerException:
            pass
        assert time.monotonic() < deadline
        threading.Event().wait(0.2)
