"""The answer log of a real tritonserver: on, off, sampled, private, and on a disk that hangs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import tritonclient.http
from typer.testing import CliRunner

from loadtest.local_server import LocalServer
from polyhead.export import export_checkpoint
from polyhead.identity import checkpoint_id
from polyhead.predictor import Predictor
from polyhead_client import Client
from polyhead_training.data.answer_log import LoggedScores
from polyhead_training.dataset import app
from tests.e2e.processes import ONE_THREAD, model_processes
from tests.e2e.proxied import Proxied
from tests.e2e.test_metrics import value, wait_until
from tests.tiny import write_tiny_checkpoint

SHARES = {"logged": "1", "sampled": "0.25", "stuck": "1"}  # by model
# In the place of a disk that hangs: writing waits for a file. The answers and the queue are the real ones.
STUCK = """
import polyhead_serving.answer_log as log_module

log_module.MOST_WAITING = 10


class StuckFiles(log_module.RotatedFiles):
    def write(self, lines):
        while not Path("{gate}").exists():
            time.sleep(0.02)
        yield from super().write(lines)


log_module.RotatedFiles = StuckFiles
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the logs, and what opens the stuck disk."""
    return tmp_path_factory.mktemp("answer_log")


@pytest.fixture(scope="module")
def logging(folder: Path) -> Iterator[LocalServer]:
    """One server of three models, which differ in their answer logs."""
    repository = folder / "repository"
    write_tiny_checkpoint(folder / "checkpoint")
    for name, share in SHARES.items():
        export_checkpoint(folder / "checkpoint", repository, name)
        config = repository / name / "config.pbtxt"
        lines = {"answer_log": folder / name, "answer_log_share": share}
        added = "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in lines.items())
        config.write_text(config.read_text(encoding="utf-8") + added, encoding="utf-8")
    with (repository / "stuck" / "1" / "model.py").open("a", encoding="utf-8") as model:
        model.write(STUCK.format(gate=folder / "gate"))
    with LocalServer(repository, environment=ONE_THREAD) as running:
        yield running


def entries(folder: Path) -> list[dict[str, Any]]:
    """What is in a log."""
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()]


def count(served: LocalServer, name: str, model: str) -> float:
    """A metric of a model's answer log."""
    return value(served.url("metrics"), f"polyhead_answer_log_{name}_total", model=model)


def open_logs(served: LocalServer) -> list[str]:
    """The files of answer logs that the server's model processes have open."""
    links = [link for process in model_processes(served) for link in Path(f"/proc/{process}/fd").iterdir()]
    return [name for name in map(os.readlink, links) if "answers-" in name]


def test_what_was_answered_is_logged(logging: LocalServer, folder: Path) -> None:
    """Texts with their answers, over HTTP and gRPC; nothing of private texts, of canaries and of explanations."""
    texts = ["Rain and sport", "Größe 東京", " "]
    predictions = []
    for protocol in ("http", "grpc"):
        with Client(logging.url(protocol), "logged", protocol=protocol) as client:
            predictions += client.classify(texts, top_k=2)
            client.classify(["secret one"], private=True)
            client.scores(["secret two"], private=True)
            list(client.stream(["secret three"], private=True))
            client.explain("secret four")
            assert client.is_ready()
    raw = tritonclient.http.InferenceServerClient(logging.url("http"))
    tensor = tritonclient.http.InferInput("TEXT", [1, 1], "BYTES").set_data_from_numpy(np.array([["Snow"]], object))
    wanted = [tritonclient.http.InferRequestedOutput("SCORES")]
    raw.infer("logged", [tensor], outputs=wanted, request_id="r-1")
    raw.infer("logged", [tensor], outputs=wanted, request_id="r-2", parameters={"private": True})
    raw.close()
    with Proxied(
        INFERENCE=logging.url("http"), METRICS=logging.url("metrics"), PROBE=logging.url("probe"), MODEL="logged"
    ) as proxied:
        for private in (True, False):
            body = json.dumps({"texts": ["through the proxy"], "private": private}).encode()
            assert proxied.ask("/v1/classify", body)[0] == 200
    wait_until(lambda: count(logging, "entries", "logged") == 8)
    found = entries(folder / "logged")
    assert len(found) == 8
    for entry, prediction in zip(found[:6], predictions, strict=True):
        assert (entry["model"], entry["version"]) == ("logged", "1")
        assert entry["checkpoint"] == checkpoint_id(folder / "checkpoint")
        if prediction.error is not None:
            assert (entry["error"], "text" in entry) == (prediction.error, False)
        else:
            assert entry["answers"]["topic"] == prediction["topic"].label
            assert entry["scores"]["topic"][prediction["topic"].label] == pytest.approx(prediction["topic"].score)
            assert entry["answers"]["stars"] == pytest.approx(prediction["stars"].value)
    assert [entry.get("text") for entry in found] == [*texts[:2], None, *texts[:2], None, "Snow", "through the proxy"]
    assert found[6]["request_id"] == "r-1"
    content = b"".join(file.read_bytes() for file in (folder / "logged").iterdir())
    assert b"secret" not in content
    assert b"canary" not in content
    assert (folder / "logged").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (folder / "logged").iterdir()} == {0o600}
    assert count(logging, "dropped", "logged") == 0


def test_the_log_is_measured_and_labelled(logging: LocalServer, folder: Path) -> None:
    """Training's commands read what the server wrote: the scores are the engine's, and the texts can be labelled."""
    texts = ["A text to measure", "Rain and snow"]
    before = count(logging, "entries", "logged")
    with Client(logging.url("http"), "logged") as client:
        client.classify(texts)
    wait_until(lambda: count(logging, "entries", "logged") >= before + 2)
    predictor = Predictor.load(folder / "checkpoint")
    logged = LoggedScores([str(folder / "logged")], folder / "checkpoint", predictor.schema, texts, None)
    np.testing.assert_allclose(logged.scores(texts), predictor.score(predictor.encode(texts)), atol=1e-5)
    result = CliRunner().invoke(app, ["from-log", str(folder / "logged"), str(folder / "to_label.csv")])
    assert result.exit_code == 0, result.output
    assert set(texts) <= set(pandas.read_csv(folder / "to_label.csv")["text"])


def test_a_share_is_logged(logging: LocalServer, folder: Path) -> None:
    """Of 400 texts at a share of a quarter, about 100 (5 standard deviations: 43)."""
    with Client(logging.url("http"), "sampled") as client:
        client.classify([f"text {number}" for number in range(400)])
    wait_until(lambda: count(logging, "entries", "sampled") > 50)
    wait_until(lambda: count(logging, "entries", "sampled") == len(entries(folder / "sampled")))
    assert abs(len(entries(folder / "sampled")) - 100) < 43


def test_off_is_the_default(served: LocalServer, logging: LocalServer) -> None:
    """Without the parameter `private` is accepted, and the model process has no file of a log open."""
    with Client(served.url("http")) as client:
        client.classify(["Rain"], private=True)
        client.classify(["Rain"])
    with Client(logging.url("http"), "logged") as client:
        client.classify(["Rain"])
    wait_until(lambda: count(logging, "entries", "logged") > 0)
    assert open_logs(logging)
    assert not open_logs(served)
    assert count(served, "entries", "gpt2_classifier") == 0


def test_a_disk_that_hangs_holds_up_no_answer(logging: LocalServer, folder: Path) -> None:
    """All texts are answered while no write ends; what does not fit into the queue is dropped and counted."""
    with Client(logging.url("http"), "stuck") as client:
        answers = [client.classify(f"text {number}") for number in range(100)]
    assert not any(answer.error for answer in answers)
    assert count(logging, "entries", "stuck") == 0
    wait_until(lambda: count(logging, "dropped", "stuck") >= 50)
    (folder / "gate").touch()
    wait_until(lambda: count(logging, "entries", "stuck") + count(logging, "dropped", "stuck") == 100)
    assert len(entries(folder / "stuck")) == count(logging, "entries", "stuck") >= 10
