"""polyhead-deploy against a real server under load: good versions take over, bad ones change nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loadtest.local_server import LocalServer
from polyhead import export
from polyhead.config_pbtxt import ConfigPbtxt
from polyhead.predictor import Predictor
from polyhead.repository import served_versions, versions_of
from polyhead.schema import Head, Schema
from polyhead_serving import deploy
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.processes import ONE_THREAD
from tests.tiny import SCHEMA, TEXTS, write_tiny_checkpoint

KEY = "a-key-of-the-tests"
TEMPLATE = Path(__file__).resolve().parents[2] / "model_repository" / "gpt2_classifier"
BODY = json_body(TEXTS[:4], ["SCORES"])
WRONG = """

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        score = self.predictor.score
        self.predictor.score = lambda encoded: score(encoded) * 0.5
"""
SLOW = """

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        import time

        time.sleep(4)
        super().initialize(args)
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints that answer differently."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed in (0, 1):
        write_tiny_checkpoint(folder / str(seed), seed=seed)
    return [folder / "0", folder / "1"]


@pytest.fixture(scope="module")
def swapping(checkpoints: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server that takes versions while it runs."""
    repository = tmp_path_factory.mktemp("swapping") / "repository"
    export.export_checkpoint(checkpoints[0], repository)
    environment = {**ONE_THREAD, "POLYHEAD_ADMIN_KEY": KEY}
    with LocalServer(repository, "--control", "explicit", environment=environment) as served:
        yield served


@pytest.fixture
def model(swapping: LocalServer) -> Path:
    """The folder of its model."""
    return swapping.repository / "gpt2_classifier"


@pytest.fixture
def run(
    swapping: LocalServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs the command; gives its exit code and the last line it wrote."""
    monkeypatch.setenv("POLYHEAD_ADMIN_KEY", KEY)

    def call(checkpoint: Path, *options: str) -> tuple[int, str]:
        place = ("--repository", str(swapping.repository), "--grpc", swapping.url("grpc"))
        with pytest.raises(SystemExit) as ended:
            deploy.main([str(checkpoint), *place, *options])
        assert isinstance(ended.value.code, int)
        captured = capsys.readouterr()
        return ended.value.code, (captured.err or captured.out).splitlines()[-1]

    return call


def live(swapping: LocalServer) -> int:
    """The version that answers."""
    status, answer = infer_json(swapping.url("http"), BODY)
    assert status == 200
    return int(answer["model_version"])


def served(model: Path, version: int) -> Path:
    """The checkpoint behind a version."""
    return model / str(version) / "checkpoint"


@contextmanager
def load(swapping: LocalServer, expected: dict[int, Path]) -> Iterator[list[int]]:
    """Asks all the time; each answer must be that of the version that it names."""
    scores = {}
    for version, checkpoint in expected.items():
        predictor = Predictor.load(checkpoint)
        scores[version] = predictor.score(predictor.encode(TEXTS[:4]))
    stop, seen, wrong = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            status, answer = infer_json(swapping.url("http"), BODY)
            if status != 200:
                wrong.append(f"{status} {answer}")
                continue
            version = int(answer["model_version"])
            seen.append(version)
            found = np.array(answer["outputs"][0]["data"]).reshape(4, -1)
            if version not in scores or not np.allclose(found, scores[version], atol=0.03):
                wrong.append(f"version {version}: {found[0]}")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        yield seen
        time.sleep(0.3)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert wrong == []
    assert len(seen) > 20


def template_with(folder: Path, addition: str) -> Path:
    """The model template with something added to its model.py."""
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("checkpoint"))
    with (folder / "1" / "model.py").open("a", encoding="utf-8") as file:
        file.write(addition)
    return folder


def test_a_good_version_takes_over(
    swapping: LocalServer, model: Path, checkpoints: list[Path], run: Callable[..., tuple[int, str]]
) -> None:
    """Under load, no request is lost and each answer is that of the version it names; old versions are removed."""
    for turn in range(3):
        before, new = live(swapping), checkpoints[(turn + 1) % 2]
        with load(swapping, {before: served(model, before), before + 1: new}) as seen:
            assert run(new, "--keep", "2") == (0, f"gpt2_classifier: version {before + 1} serves")
            deadline = time.monotonic() + 10
            while before + 1 not in seen:  # requests that were on their way to the old version come first
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert live(swapping) == before + 1
        assert set(seen) == {before, before + 1}
        assert versions_of(model) == [before, before + 1]
    run(checkpoints[0])
    assert list(model.glob(".*")) == []


@pytest.fixture
def tampered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], Any]], None]:
    """Changes a version after it was proved and put in place, before the server loads it."""

    def tamper(change: Callable[[Path], Any]) -> None:
        install = export.install_version

        def install_and_change(staged: Path, model: Path, version: int, staging: Path) -> None:
            install(staged, model, version, staging)
            change(model / str(version) / "checkpoint" / "model.safetensors")

        monkeypatch.setattr(deploy, "install_version", install_and_change)

    return tamper


def flip_weights(file: Path) -> None:
    """Replaces the weights by others of the same shapes."""
    save_file({name: -tensor for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: os.truncate(file, 1000), "model.safetensors"),
        (flip_weights, "golden.jsonl"),
    ],
    ids=["corrupt", "other weights"],
)
def test_a_version_that_the_server_refuses(
    swapping: LocalServer,
    model: Path,
    checkpoints: list[Path],
    run: Callable[..., tuple[int, str]],
    tampered: Callable[..., None],
    change: Callable[[Path], Any],
    reason: str,
) -> None:
    """A version damaged after its proof never answers: the server refuses it, it is removed, the old version serves."""
    before, config = live(swapping), (model / "config.pbtxt").read_bytes()
    tampered(change)
    with load(swapping, {before: served(model, before)}):
        code, line = run(checkpoints[1])
        assert code == 1
        assert reason in line
        assert f"version {before} serves, version {before + 1} was removed" in line
    assert versions_of(model)[-1] == before == live(swapping)
    assert (model / "config.pbtxt").read_bytes() == config


def test_wrong_live_answers_are_taken_back(
    swapping: LocalServer,
    model: Path,
    checkpoints: list[Path],
    run: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A version that loads, but gives other answers than its proof, is rolled back."""
    before = live(swapping)
    monkeypatch.setattr(export, "_template", lambda: template_with(tmp_path / "wrong", WRONG))
    code, line = run(checkpoints[1])
    assert code == 1
    assert "live answers to golden.jsonl:" in line
    assert versions_of(model)[-1] == before
    with load(swapping, {before: served(model, before)}):
        pass


def test_a_slow_version(
    swapping: LocalServer,
    model: Path,
    checkpoints: list[Path],
    run: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a version loads, the old one serves; a version that is too slow is rolled back for good."""
    before = live(swapping)
    slow = template_with(tmp_path / "slow", SLOW)
    monkeypatch.setattr(export, "_template", lambda: slow)
    with load(swapping, {before: served(model, before), before + 1: checkpoints[1]}):
        code, line = run(checkpoints[1], "--load-timeout-s", "2")
        assert (code, "no answer within 2 s" in line) == (1, True)
        assert live(swapping) == before
        time.sleep(4)
    assert live(swapping) == before == versions_of(model)[-1]
    with load(swapping, {before: served(model, before), before + 1: checkpoints[1]}):
        assert run(checkpoints[1])[0] == 0
    monkeypatch.undo()


def test_a_killed_deployment_is_taken_back(
    swapping: LocalServer, model: Path, checkpoints: list[Path], run: Callable[..., tuple[int, str]]
) -> None:
    """Killed after the server has loaded it: a restart would serve the old version, and the next deployment works."""
    before = live(swapping)
    command = [sys.executable, "-u", "-m", "polyhead_serving.deploy", str(checkpoints[1])]
    command += ["--repository", str(swapping.repository), "--grpc", swapping.url("grpc")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as deployment:
        assert deployment.stdout is not None
        assert any("asking it for its golden answers" in line for line in deployment.stdout)
        deployment.kill()
    assert live(swapping) == before + 1
    assert served_versions(model) == [before]
    with load(swapping, {before: served(model, before), before + 1: checkpoints[1]}):
        assert run(checkpoints[1]) == (0, f"gpt2_classifier: version {before + 1} serves")
    assert (live(swapping), served_versions(model)) == (before + 1, [before + 1])


def test_other_labels_are_served_with_their_version(
    swapping: LocalServer, checkpoints: list[Path], run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Other heads are refused without the flag; with it, Triton's classification names the new labels at once."""
    heads = [*SCHEMA.heads[:2], Head(name="tone", kind="single_label", labels=("formal", "casual"))]
    write_tiny_checkpoint(tmp_path / "other", schema=Schema(heads))
    before = live(swapping)
    code, line = run(tmp_path / "other")
    assert (code, "--allow-schema-change" in line, live(swapping)) == (2, True, before)
    for checkpoint, tone in ((tmp_path / "other", True), (checkpoints[0], False)):
        assert run(checkpoint, "--allow-schema-change")[0] == 0
        body = json_body(TEXTS[:1], ["SCORES"])
        body["outputs"][0]["parameters"] = {"classification": 20}
        _, answer = infer_json(swapping.url("http"), body)
        labels = {element.split(":")[2] for element in answer["outputs"][0]["data"]}
        assert ({"tone/formal", "tone/casual"} <= labels, "stars/value" in labels) == (tone, not tone)


def test_what_is_refused_beforehand(
    swapping: LocalServer,
    model: Path,
    checkpoints: list[Path],
    run: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another version in config.pbtxt, wrong golden answers, a wrong key or no server: nothing changes."""
    before, versions = live(swapping), versions_of(model)
    config = (model / "config.pbtxt").read_text(encoding="utf-8")
    (model / "config.pbtxt").write_text(ConfigPbtxt(config).pinned_to(before + 7), encoding="utf-8")
    code, line = run(checkpoints[0])
    assert (code, f"version {before} answers, but a restart would serve {before + 7}" in line) == (2, True)
    (model / "config.pbtxt").write_text(config, encoding="utf-8")
    mixed = shutil.copytree(checkpoints[0], tmp_path / "mixed")
    shutil.copyfile(checkpoints[1] / "golden.jsonl", mixed / "golden.jsonl")
    code, line = run(mixed)
    assert (code, "golden.jsonl" in line) == (2, True)
    assert run(checkpoints[0], "--version", str(before))[0] == 2
    assert "Connection refused" in run(checkpoints[0], "--grpc", "127.0.0.1:9")[1]
    monkeypatch.setenv("POLYHEAD_ADMIN_KEY", "some-other-key-than-its")
    assert "does not accept this POLYHEAD_ADMIN_KEY" in run(checkpoints[0])[1]
    assert (live(swapping), versions_of(model)) == (before, versions)
