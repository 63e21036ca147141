"""Deployments against a server that follows a script: what is rolled back, and what happens if that fails."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from polyhead.decode import DecodeOptions
from polyhead.errors import RepositoryError
from polyhead.export import export_checkpoint
from polyhead.predictor import Predictor
from polyhead.repository import locked, versions_of
from polyhead_serving import deploy as module
from polyhead_serving.deploy import Deployment, RollbackError, RolledBackError, deploy
from polyhead_serving.live_server import LiveAnswers, ServerError


class ScriptedServer:
    """Serves the highest version of a repository when it is told to load; fails as the script says.

    Attributes:
        wrong: errors that the next loads and answers raise, in this order; None raises nothing.
        shift: added to all scores.
    """

    def __init__(self, repository: Path) -> None:
        self.model = repository / "gpt2_classifier"
        self.serving = versions_of(self.model)[-1]
        self.wrong: list[BaseException | None] = []
        self.shift = 0.0

    def check_key(self) -> None:
        """Takes any."""

    def version(self) -> int:
        """What it serves."""
        return self.serving

    def load(self, timeout_s: float) -> None:
        """Takes the highest version there is."""
        self._fail()
        self.serving = versions_of(self.model)[-1]

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


def test_half_copies_of_a_killed_deployment_are_removed(server: ScriptedServer, wanted: Deployment) -> None:
    """The next deployment removes a half copy; a second deployment at the same time is refused."""
    (server.model / ".staging-x" / "version").mkdir(parents=True)
    with locked(server.model), pytest.raises(RepositoryError, match="another deployment"):
        deploy(wanted, server)  # type: ignore[arg-type]
    assert deploy(wanted, server) == 2  # type: ignore[arg-type]
    assert sorted(path.name for path in server.model.glob(".*")) == [".deploy.lock"]


def test_the_template_is_never_removed(
    server: ScriptedServer, wanted: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the version that is the template of new repositories, only the checkpoint is removed."""
    template = shutil.copytree(server.model, tmp_path / "template")
    monkeypatch.setattr("polyhead.export._template", lambda: template)
    for version in (2, 3, 4, 5):
        assert deploy(wanted, server) == version  # type: ignore[arg-type]
    assert versions_of(server.model) == [3, 4, 5]
    shutil.rmtree(template)
    (server.model / "1").mkdir()
    shutil.copyfile(server.model / "5" / "model.py", server.model / "1" / "model.py")
    shutil.copytree(server.model / "5" / "checkpoint", server.model / "1" / "checkpoint")
    monkeypatch.setattr("polyhead.export._template", lambda: server.model)
    deploy(wanted, server)  # type: ignore[arg-type]
    assert [path.name for path in (server.model / "1").iterdir()] == ["model.py"]


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
    assert run("checkpoint", "--repository", "here") == 0
    assert (seen[0].keep, seen[0].repository, seen[0].precision) == (5, Path("here"), None)
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
