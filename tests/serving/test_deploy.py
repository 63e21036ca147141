"""Deployments against a server that follows a script: what is rolled back, and what happens if that fails."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.config_pbtxt import ConfigPbtxt
from polyhead.decode import DecodeOptions
from polyhead.errors import RepositoryError
from polyhead.export import export_checkpoint
from polyhead.files import file_lock
from polyhead.predictor import Predictor
from polyhead.repository import locked, served_versions, take_back_interrupted, versions_of
from polyhead.schema import Schema
from polyhead_serving import deploy as module
from polyhead_serving.deploy import Deployment, RollbackError, RolledBackError, deploy
from polyhead_serving.live_server import LiveAnswers, ServerError
from tests.classifier.test_terminal import Full
from tests.tiny import SCHEMA, write_tiny_checkpoint


class ScriptedServer:
    """Serves the version that a config names when it is told to load it; fails as the script says.

    Attributes:
        wrong: errors that the next loads and answers raise, in this order; None raises nothing.
        shift: added to all scores.
    """

    def __init__(self, repository: Path) -> None:
        self.model = repository / "gpt2_classifier"
        self.serving = served_versions(self.model)[0]
        self.wrong: list[BaseException | None] = []
        self.shift = 0.0

    def check_key(self) -> None:
        """Takes any."""

    def version(self) -> int:
        """What it serves."""
        return self.serving

    def schema(self) -> bytes:
        """The schema of the version that it serves."""
        return Predictor.load(self.model / str(self.serving) / "checkpoint", precision="fp32").schema_json()

    def load(self, timeout_s: float, config: str | None = None) -> None:
        """Takes the version that this config, or else config.pbtxt, names."""
        self._fail()
        (self.serving,) = served_versions(self.model) if config is None else ConfigPbtxt(config).served([])

    def answers(self, texts: list[str], within_s: float) -> LiveAnswers:
        """The answers of the version that it serves."""
        self._fail()
        predictor = Predictor.load(self.model / str(self.serving) / "checkpoint", precision="fp32")
        encoded = predictor.encode(texts)
        scores = predictor.score(encoded) + np.float32(self.shift)
        tokens = [(text.token_count, text.truncated) for text in encoded]
        return LiveAnswers(self.serving, scores, tokens, predictor.decode(encoded, scores, DecodeOptions()))

    def _fail(self) -> None:
        if self.wrong and (wrong := self.wrong.pop(0)) is not None:
            raise wrong


@pytest.fixture
def repository(base_checkpoint: Path, tmp_path: Path) -> Path:
    """One version of a checkpoint."""
    export_checkpoint(base_checkpoint, tmp_path / "repository", precision="fp32")
    return tmp_path / "repository"


@pytest.fixture
def server(repository: Path) -> ScriptedServer:
    """Serves it."""
    return ScriptedServer(repository)


@pytest.fixture
def wanted(repository: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """The same checkpoint once more; pauses take no time."""
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return Deployment(base_checkpoint, repository, precision="fp32", verify_timeout_s=0.2)


def test_failures_are_rolled_back(server: ScriptedServer, wanted: Deployment) -> None:
    """After a failed load or wrong answers, the old version serves, and all files are as before."""
    before = {path: path.read_bytes() for path in server.model.rglob("[a-z]*") if path.is_file()}
    server.wrong = [ServerError("corrupt")]
    with pytest.raises(RolledBackError, match="corrupt; version 1 serves, version 2 was removed"):
        deploy(wanted, server)  # type: ignore[arg-type]
    server.shift = 0.01
    with pytest.raises(RolledBackError, match=r"live answers to golden.jsonl:\d+: .* is off by"):
        deploy(wanted, server)  # type: ignore[arg-type]
    assert server.serving == 1
    assert {path: path.read_bytes() for path in server.model.rglob("[a-z]*") if path.is_file()} == before


def test_a_rollback_waits_for_a_server_that_comes_back(server: ScriptedServer, wanted: Deployment) -> None:
    """If the server dies during the load, the rollback asks again until it has restarted."""
    gone = ServerError("connection refused")
    server.wrong = [gone, gone, gone, gone, None]
    with pytest.raises(RolledBackError, match="version 1 serves"):
        deploy(wanted, server)  # type: ignore[arg-type]
    assert versions_of(server.model) == [1]


def test_a_failed_rollback_is_an_error(server: ScriptedServer, wanted: Deployment) -> None:
    """A server that does not come back needs a person; the new version's files are removed all the same."""
    server.wrong = [ServerError("gone")] * 1_000_000
    with pytest.raises(RollbackError, match="version 1 could not be brought back: gone"):
        deploy(wanted, server)  # type: ignore[arg-type]
    assert versions_of(server.model) == [1]


def test_ctrl_c_rolls_back(server: ScriptedServer, wanted: Deployment) -> None:
    """A deployment that is stopped while the server loads leaves nothing behind."""
    server.wrong = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        deploy(wanted, server)  # type: ignore[arg-type]
    assert (server.serving, versions_of(server.model)) == (1, [1])


@pytest.mark.parametrize("shift", [0.0, 0.01])
def test_an_output_that_fails_stops_nothing(
    server: ScriptedServer, wanted: Deployment, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no line can be written, a deployment is finished, or taken back, as it would be otherwise."""
    monkeypatch.setattr(sys, "stdout", Full())
    server.shift = shift
    if shift:
        with pytest.raises(RolledBackError):
            deploy(wanted, server)  # type: ignore[arg-type]
    else:
        assert deploy(wanted, server) == 2  # type: ignore[arg-type]
    served = 1 if shift else 2
    assert (server.serving, served_versions(server.model)) == (served, [served])


def test_a_stop_after_the_last_step_says_that_the_new_version_serves(
    server: ScriptedServer, wanted: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while old versions are removed must not end with the exit code that means that the old version serves."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_retire_old", stop)
    assert deploy(wanted, server) == 2  # type: ignore[arg-type]
    assert (server.serving, served_versions(server.model)) == (2, [2])


def test_numbers_beyond_tritons_are_no_versions(server: ScriptedServer, wanted: Deployment) -> None:
    """A folder with such a number is nobody's version; after the highest number there is no next one."""
    (server.model / "99999999999999999999").mkdir()
    assert versions_of(server.model) == [1]
    assert deploy(wanted, server) == 2  # type: ignore[arg-type]
    (server.model / str(2**63 - 1)).mkdir()
    with pytest.raises(RepositoryError, match="must be at most 9223372036854775807"):
        deploy(wanted, server)  # type: ignore[arg-type]
    assert (server.serving, served_versions(server.model)) == (2, [2])


def test_half_copies_of_a_killed_deployment_are_removed(server: ScriptedServer, wanted: Deployment) -> None:
    """The next deployment removes a half copy; a second deployment or an export at the same time is refused."""
    for folder in (".staging-x", ".staging+gpt2_classifier"):
        (server.model / folder / "version").mkdir(parents=True)
    with locked(wanted.repository, wanted.name):
        with pytest.raises(RepositoryError, match="another export or deployment"):
            deploy(wanted, server)  # type: ignore[arg-type]
        with pytest.raises(RepositoryError, match="another export or deployment"):
            export_checkpoint(wanted.checkpoint, wanted.repository, version=7)
    assert deploy(wanted, server) == 2  # type: ignore[arg-type]
    assert list(server.model.glob(".*")) == []


def test_the_template_is_never_removed(
    server: ScriptedServer, wanted: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the version that is the template of new repositories, only the checkpoint is removed."""
    template = shutil.copytree(server.model, tmp_path / "template")
    monkeypatch.setattr("polyhead.export._template", lambda: template)
    for version in (2, 3, 4, 5):
        assert deploy(wanted, server) == version  # type: ignore[arg-type]
    assert (versions_of(server.model), served_versions(server.model)) == ([3, 4, 5], [5])
    shutil.rmtree(template)
    (server.model / "1").mkdir()
    shutil.copyfile(server.model / "5" / "model.py", server.model / "1" / "model.py")
    shutil.copytree(server.model / "5" / "checkpoint", server.model / "1" / "checkpoint")
    monkeypatch.setattr("polyhead.export._template", lambda: server.model)
    deploy(wanted, server)  # type: ignore[arg-type]
    assert [path.name for path in (server.model / "1").iterdir()] == ["model.py"]


@pytest.fixture(scope="module")
def fewer_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with two of the three heads."""
    path = tmp_path_factory.mktemp("fewer") / "checkpoint"
    write_tiny_checkpoint(path, schema=Schema([SCHEMA["topic"], SCHEMA["mood"]]))
    return path


def test_other_heads_are_refused(
    server: ScriptedServer, wanted: Deployment, fewer_heads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head fewer than the live server has can break its callers: nothing is changed without the flag."""
    before = {path: path.read_bytes() for path in server.model.rglob("*") if path.is_file()}
    other = replace(wanted, checkpoint=fewer_heads)
    with pytest.raises(RepositoryError, match=r"callers of the live server.*--allow-schema-change"):
        deploy(other, server)  # type: ignore[arg-type]
    assert "breaks callers: head 'stars' (regression) is gone\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in server.model.rglob("*") if path.is_file()} == before
    assert deploy(replace(other, allow_schema_change=True), server) == 2  # type: ignore[arg-type]


def test_a_schema_that_is_not_understood_is_refused(
    server: ScriptedServer, wanted: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the live server is of another release, what changes is not known, and the flag is needed too."""
    monkeypatch.setattr(server, "schema", lambda: b'{"heads": "many"}')
    with pytest.raises(RepositoryError, match=r"is not known; --allow-schema-change deploys anyway"):
        deploy(wanted, server)  # type: ignore[arg-type]
    assert deploy(replace(wanted, allow_schema_change=True), server) == 2  # type: ignore[arg-type]


def test_the_version_before_stays(server: ScriptedServer, wanted: Deployment) -> None:
    """Even with --keep 1: a server that shares the repository may be loading it."""
    for version in (2, 3, 4):
        assert deploy(replace(wanted, keep=1), server) == version  # type: ignore[arg-type]
        assert versions_of(server.model) == [version - 1, version]


def test_an_interrupted_deployment_is_taken_back(
    server: ScriptedServer, wanted: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    """A version that a killed deployment made the server load is taken back before the next deployment."""
    shutil.copytree(server.model / "1", server.model / "2")
    (server.model / "2" / ".uncommitted").touch()
    server.serving = 2
    assert deploy(wanted, server) == 2  # type: ignore[arg-type]
    assert server.serving == 2
    out = capsys.readouterr().out
    assert "version 2 was removed: its export or deployment was interrupted before it was served" in out
    assert "version 2 answers, but its deployment was interrupted; back to 1" in out
    assert not (server.model / "2" / ".uncommitted").exists()


def test_a_start_takes_back_what_was_interrupted(server: ScriptedServer, wanted: Deployment) -> None:
    """Unless a deployment is under way now; and a committed version stays."""
    shutil.copytree(server.model / "1", server.model / "2")
    for version in ("1", "2"):
        (server.model / version / ".uncommitted").touch()
    (server.model / ".staging+gpt2_classifier").mkdir()
    told: list[str] = []
    with file_lock(wanted.repository / ".gpt2_classifier.lock"):
        take_back_interrupted(wanted.repository, told.append)
    assert (versions_of(server.model), told) == ([1, 2], [])
    take_back_interrupted(wanted.repository, told.append)
    assert versions_of(server.model) == [1]
    assert "gpt2_classifier: version 2 was removed" in told[0]
    assert list(server.model.rglob(".*")) == []


def test_a_server_that_serves_something_else_is_refused(server: ScriptedServer, wanted: Deployment) -> None:
    """After an export that the server has not loaded, a failed deployment could not be rolled back."""
    export_checkpoint(wanted.checkpoint, wanted.repository, version=2)
    with pytest.raises(RepositoryError, match="version 1 answers, but a restart would serve 2"):
        deploy(wanted, server)  # type: ignore[arg-type]


def test_a_stop_at_the_last_step_is_rolled_back(
    server: ScriptedServer, wanted: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Ctrl-C comes right after config.pbtxt was replaced, the old version is served again, also by a restart."""
    commit, stops = module.commit, [True]

    def commit_then_stop(*arguments: Any) -> None:
        commit(*arguments)
        if stops and stops.pop():
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "commit", commit_then_stop)
    with pytest.raises(KeyboardInterrupt):
        deploy(wanted, server)  # type: ignore[arg-type]
    assert (server.serving, versions_of(server.model), served_versions(server.model)) == (1, [1], [1])


def test_a_server_that_restarts_after_its_answers_gets_the_new_version(
    server: ScriptedServer, wanted: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the last step a restart loads the old version; the deployment ends when the new one answers again."""
    commit = module.commit

    def restart_then_commit(*arguments: Any) -> None:
        server.serving = 1
        commit(*arguments)

    monkeypatch.setattr(module, "commit", restart_then_commit)
    assert deploy(wanted, server) == 2  # type: ignore[arg-type]
    assert (server.serving, served_versions(server.model)) == (2, [2])


def test_a_repository_of_an_older_release(server: ScriptedServer, wanted: Deployment) -> None:
    """Its highest version is served, with labels for all versions. It is pinned first, so that a restart is safe."""
    config = server.model / "config.pbtxt"
    (server.model / "1" / "labels.txt").rename(server.model / "labels.txt")
    old = config.read_text(encoding="utf-8").replace("1/labels.txt", "labels.txt")
    config.write_text(old.replace("specific { versions: [ 1 ] }", "latest { num_versions: 1 }"), encoding="utf-8")
    server.wrong = [ServerError("corrupt")]
    with pytest.raises(RolledBackError):
        deploy(wanted, server)  # type: ignore[arg-type]
    assert served_versions(server.model) == [1]
    assert (server.model / "1" / "labels.txt").read_text(encoding="utf-8").splitlines() == SCHEMA.column_names()
    assert deploy(wanted, server) == 2  # type: ignore[arg-type]
    assert served_versions(server.model) == [2]


def run(*arguments: str) -> int:
    """Runs the command line; gives its exit code."""
    with pytest.raises(SystemExit) as ended:
        module.main([*arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "code"), [(RepositoryError("x"), 2), (RolledBackError("x"), 1), (RollbackError("x"), 3), (None, 0)]
)
def test_exit_codes(
    error: Exception | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each outcome has its exit code and prints one line."""

    def end(*_: object) -> int:
        if error is not None:
            raise error
        return 7

    monkeypatch.setattr(module, "deploy", end)
    monkeypatch.setenv("POLYHEAD_ADMIN_KEY", "0123456789abcdef")
    assert run("checkpoint") == code
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("\n") == 1


def test_the_key_must_be_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the server's key, nothing is tried."""
    monkeypatch.delenv("POLYHEAD_ADMIN_KEY", raising=False)
    assert run("checkpoint") == 2
    assert "POLYHEAD_ADMIN_KEY" in capsys.readouterr().err


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """POLYHEAD_DEPLOY_ and an option's name sets its default; POLYHEAD_ADMIN_KEY is the server's own variable."""
    seen: list[Deployment] = []
    monkeypatch.setattr(module, "deploy", lambda wanted, server: seen.append(wanted) or 7)
    monkeypatch.setenv("POLYHEAD_ADMIN_KEY", "0123456789abcdef")
    monkeypatch.setenv("POLYHEAD_DEPLOY_KEEP", "5")
    monkeypatch.setenv("POLYHEAD_DEPLOY_REPOSITORY", "elsewhere")
    monkeypatch.setenv("POLYHEAD_DEPLOY_ALLOW_SCHEMA_CHANGE", "1")  # can break callers: on the command line only
    assert run("checkpoint", "--repository", "here") == 0
    assert (seen[0].keep, seen[0].repository, seen[0].precision) == (5, Path("here"), None)
    assert seen[0].allow_schema_change is False
    assert run("checkpoint", "--allow-schema-change") == 0
    assert seen[1].allow_schema_change is True
    assert run("checkpoint", "--keep", "0") == 2


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_times_are_finite(value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A time that no timer takes is refused."""
    monkeypatch.setenv("POLYHEAD_ADMIN_KEY", "0123456789abcdef")
    for option in ("--load-timeout-s", "--verify-timeout-s"):
        assert run("checkpoint", option, value) == 2
        assert option in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_a_deployment(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the parent process ignores them, as a script does with SIGINT; afterwards they are ignored again."""
    monkeypatch.setattr(module, "deploy", lambda wanted, server: os.kill(os.getpid(), number))
    monkeypatch.setenv("POLYHEAD_ADMIN_KEY", "0123456789abcdef")
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        assert run("checkpoint") == 130
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, previous)
