"""Versions that are swapped under load: a good one answers afterwards; a bad one never answers.

There is one server: a swap takes nothing away, so no request may be lost.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from loadtest.local_server import LocalServer
from polyhead.config_pbtxt import ConfigPbtxt
from polyhead.repository import served_versions, versions_of
from polyhead_serving.triton import ADMIN_HEADER
from tests.chaos.conftest import Record
from tests.chaos.corpus import Corpus
from tests.chaos.harm import serve, survive
from tests.chaos.load import VerifiedLoad, through_client
from tests.e2e.processes import model_processes
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.chaos

KEY = "a-key-for-chaos-tests"
EXPLICIT = ("--control", "explicit")
ENVIRONMENT = {"POLYHEAD_ADMIN_KEY": KEY}
SLOW_LOAD_S = 20.0

# Appended to the model.py of a version that is installed by hand.
SLOW = f"""

import time as _time

_initialize = TritonPythonModel.initialize


def _initialize_slowly(self, args):
    _time.sleep({SLOW_LOAD_S:g})
    _initialize(self, args)


TritonPythonModel.initialize = _initialize_slowly
"""
MISCOMPUTES = """

_score = Predictor.score
Predictor.score = lambda self, encoded: _score(self, encoded) * 0.9
"""


@pytest.fixture(scope="session")
def next_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tiny checkpoint with the same heads and other answers."""
    path = tmp_path_factory.mktemp("next") / "checkpoint"
    write_tiny_checkpoint(path, architecture="hidden_state_concat", seed=1)
    return path


@pytest.fixture(scope="session")
def next_corpus(next_checkpoint: Path, corpus: Corpus) -> Corpus:
    """The same texts with that checkpoint's scores."""
    return Corpus.of(next_checkpoint, corpus.texts)


def deploy(served: LocalServer, checkpoint: Path, repository: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs polyhead-deploy as a process."""
    command = [sys.executable, "-m", "polyhead_serving.deploy", str(checkpoint), "--repository", str(repository)]
    command += ["--grpc", served.url("grpc"), "--precision", "fp32", *options]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


def load_by_hand(served: LocalServer, checkpoint: Path, code: str = "") -> None:
    """Puts version 2 into the repository and makes Triton load it, without polyhead-deploy and its gate.

    Raises:
        InferenceServerException: Triton refuses it.
    """
    first = served.repository / "gpt2_classifier" / "1"
    version = Path(shutil.copytree(first, first.with_name("2"), ignore=shutil.ignore_patterns("checkpoint")))
    shutil.copytree(checkpoint, version / "checkpoint")
    with (version / "model.py").open("a", encoding="utf-8") as file:
        file.write(code)
    config = first.with_name("config.pbtxt")
    config.write_text(ConfigPbtxt(config.read_text(encoding="utf-8")).pinned_to(2), encoding="utf-8")
    with tritonclient.grpc.InferenceServerClient(served.url("grpc")) as client:
        headers = {f"triton-grpc-protocol-{ADMIN_HEADER}": KEY}
        client.load_model("gpt2_classifier", headers=headers, client_timeout=60)


def test_swap_to_a_good_version(
    repository: Path, next_checkpoint: Path, corpus: Corpus, next_corpus: Corpus, record: Record
) -> None:
    """No request is lost; while both versions may answer, answers are of either; then only of the new one."""
    with serve(repository, *EXPLICIT, environment=ENVIRONMENT) as served:
        with through_client(served.url("http")) as client, VerifiedLoad(client.scores, corpus) as load:
            load.wait_for(100)
            load.expect(corpus, next_corpus)
            began = time.monotonic()
            done = deploy(served, next_checkpoint, repository)
            took_s = time.monotonic() - began
            assert done.returncode == 0, done
            load.expect(next_corpus)
            load.wait_for(200)
        record(
            "swap to a good version", load.count, deploy_s=round(took_s, 1), slowest_answer_s=round(load.slowest_s, 1)
        )


def test_swap_to_a_corrupt_version(
    repository: Path, next_checkpoint: Path, corpus: Corpus, tmp_path: Path, record: Record
) -> None:
    """The deployment refuses a checkpoint with truncated weights, and so does the server if it is copied by hand."""
    corrupt = Path(shutil.copytree(next_checkpoint, tmp_path / "corrupt"))
    weights = corrupt / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with serve(repository, *EXPLICIT, environment=ENVIRONMENT) as served:
        with through_client(served.url("http")) as client, VerifiedLoad(client.scores, corpus) as load:
            load.wait_for(100)
            done = deploy(served, corrupt, repository)
            assert done.returncode == 2, done
            assert not (repository / "gpt2_classifier" / "2").exists()
            with pytest.raises(InferenceServerException, match=r"model\.safetensors"):
                load_by_hand(served, corrupt)
            load.wait_for(200)
        record("swap to a corrupt version", load.count)


def test_swap_to_a_slow_version(
    repository: Path, next_checkpoint: Path, corpus: Corpus, next_corpus: Corpus, record: Record
) -> None:
    """A version that takes too long to load is rolled back; while a slow one loads, the old one answers."""
    with serve(repository, *EXPLICIT, environment=ENVIRONMENT) as served:
        with through_client(served.url("http")) as client, VerifiedLoad(client.scores, corpus) as load:
            load.wait_for(100)
            # The new version may answer after it has loaded, too late, and before it is rolled back.
            load.expect(corpus, next_corpus)
            done = deploy(served, next_checkpoint, repository, "--load-timeout-s", "0.5")
            assert done.returncode == 1, done
            load.expect(corpus)
            load.wait_for(100)
            load.expect(corpus, next_corpus)
            before, began = load.count.answered, time.monotonic()
            load_by_hand(served, next_checkpoint, SLOW)
            assert time.monotonic() - began > SLOW_LOAD_S
            assert load.count.answered - before > 100, "the old version did not answer meanwhile"
            load.expect(next_corpus)
            load.wait_for(200)
        record("swap to a slow version", load.count, slowest_answer_s=round(load.slowest_s, 1))


def test_swap_to_wrong_answers(
    repository: Path, next_checkpoint: Path, corpus: Corpus, tmp_path: Path, record: Record
) -> None:
    """Weights that do not match golden.jsonl are refused; a version that computes wrong scores does not load."""
    wrong = Path(shutil.copytree(next_checkpoint, tmp_path / "wrong"))
    shutil.copyfile(repository / "gpt2_classifier" / "1" / "checkpoint" / "golden.jsonl", wrong / "golden.jsonl")
    with serve(repository, *EXPLICIT, environment=ENVIRONMENT) as served:
        with through_client(served.url("http")) as client, VerifiedLoad(client.scores, corpus) as load:
            load.wait_for(100)
            done = deploy(served, wrong, repository)
            assert done.returncode == 2, done
            assert "golden.jsonl" in done.stderr
            load.wait_for(100)
            with pytest.raises(InferenceServerException, match=r"golden\.jsonl"):
                load_by_hand(served, next_checkpoint, MISCOMPUTES)
            load.wait_for(200)
        record("swap to wrong answers", load.count)


def test_half_copied_version(repository: Path, sound: Path, checkpoint: Path, corpus: Corpus, record: Record) -> None:
    """A half-copied version folder stops neither a deployment nor a restart, and no request is lost."""
    model = repository / "gpt2_classifier"
    with serve(repository, *EXPLICIT, environment=ENVIRONMENT) as harmed, serve(sound) as healthy:

        def copy_half_then_fall() -> None:
            (model / "2" / "checkpoint").mkdir(parents=True)
            shutil.copyfile(checkpoint / "config.json", model / "2" / "checkpoint" / "config.json")
            half = (checkpoint / "model.safetensors").read_bytes()[:50_000]
            (model / "2" / "checkpoint" / "model.safetensors").write_bytes(half)
            done = deploy(harmed, checkpoint, repository)
            assert done.returncode == 0, done
            assert served_versions(model) == [3]
            time.sleep(3)
            assert harmed.times_ready() == 1, "a half-copied version alone restarted the server"
            os.kill(model_processes(harmed)[0], signal.SIGKILL)

        load, recovery_s = survive(harmed, healthy, corpus, copy_half_then_fall)
        record("half-copied version, and a restart", load.count, recovery_s)


@pytest.mark.parametrize("line", ["is in place", "asking it for its golden answers"])
def test_killed_deployment(
    repository: Path, sound: Path, checkpoint: Path, corpus: Corpus, record: Record, line: str
) -> None:
    """After a deployment is killed, a restart serves the old version, and the next deployment succeeds."""
    model = repository / "gpt2_classifier"
    with serve(repository, *EXPLICIT, environment=ENVIRONMENT) as harmed, serve(sound) as healthy:

        def kill_deployment_then_fall() -> None:
            command = [sys.executable, "-u", "-m", "polyhead_serving.deploy", str(checkpoint)]
            command += ["--repository", str(repository), "--grpc", harmed.url("grpc"), "--precision", "fp32"]
            environment = {**os.environ, **ENVIRONMENT}
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as deployment:
                assert deployment.stdout is not None
                assert any(line in written for written in deployment.stdout)
                deployment.kill()
            assert (versions_of(model), served_versions(model)) == ([1, 2], [1])
            for process in model_processes(harmed):  # of both versions, so that only a restarted server answers
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

        load, recovery_s = survive(harmed, healthy, corpus, kill_deployment_then_fall)
        done = deploy(harmed, checkpoint, repository)
        assert done.returncode == 0, done
        assert "version 2 was removed" in done.stdout
        assert served_versions(model) == [2]
        record(f"deployment killed: {line}", load.count, recovery_s)
