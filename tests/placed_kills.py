"""Exports and deployments that are killed, or whose disk fails, at each of their steps in turn.

    python -m tests.placed_kills FOLDER

A step is a call that changes the file system or waits for the disk. Each attempt is a process of its own, forked from
this one. After it, `read_like_triton` reads the repository as a start of tritonserver would, and the same export or
deployment must succeed when it is run once more. Prints ``{scenario: {fault: [steps, findings]}}`` as JSON.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from polyhead import export, files, repository
from polyhead.errors import PolyheadError, ToleranceError
from polyhead.interface import Interface
from polyhead.repository import take_back_interrupted
from polyhead_serving import deploy
from polyhead_serving.live_server import LiveAnswers, ServerError

NAME = "gpt2_classifier"
OLD_CONFIG = (
    'backend: "python"\noutput [ { name: "SCORES" label_filename: "labels.txt" } ]  # mine\n'
    "version_policy { latest { num_versions: 1 } }\n"
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}
NEEDS_SPACE = {"os.mkdir", "open", "fsync", "os.link", "os.symlink"}
FAULTS = ("kill", "full", "read-only")


class Steps:
    """Counts the steps of this process, and lets a fault happen at one of them."""

    def __init__(self) -> None:
        self.count = 0
        self.fault_at = sys.maxsize
        self.fault = "kill"
        self.is_on = False
        sys.addaudithook(self._audit)
        fsync, exchange = os.fsync, files.exchange

        def counted_fsync(number: int) -> None:
            self.step("fsync" if stat.S_ISREG(os.fstat(number).st_mode) else "fsync of a folder")
            fsync(number)

        def counted_exchange(first: Path, second: Path) -> None:
            self.step("exchange")
            exchange(first, second)

        os.fsync = counted_fsync
        files.exchange = repository.exchange = counted_exchange

    def step(self, event: str) -> None:
        """Called before each step."""
        if not self.is_on:
            return
        self.count += 1
        if self.count < self.fault_at:
            return
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "read-only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if event in NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
            self.step(event)


STEPS = Steps()


class SharedServer:
    """A tritonserver that outlives the processes which ask it: its state is in memory that they share."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.memory = mmap.mmap(-1, 1 << 16)

    def check_key(self) -> None:
        """Takes any."""

    def version(self) -> int:
        """The version that it serves."""
        return int(self._state()["version"])

    def schema(self) -> bytes:
        """The schema of what it serves."""
        return json.dumps(self._state()["schema"]).encode()

    def answers(self, texts: list[str], within_s: float) -> LiveAnswers:
        """Answers nothing, with the version that it serves."""
        return LiveAnswers(self.version(), np.zeros((len(texts), 1), dtype=np.float32), [], [])

    def load(self, timeout_s: float, config: str | None = None) -> None:
        """Loads what the config says."""
        try:
            found = read_model(self.place / NAME, config)
        except AssertionError as error:
            raise ServerError(str(error)) from error
        section = json.loads((self.place / NAME / str(found[0]) / "checkpoint" / "config.json").read_text())["polyhead"]
        self._keep({"version": found[0], "schema": section})

    def _state(self) -> Any:
        return json.loads(self.memory[:].rstrip(b"\0"))

    def _keep(self, state: Any) -> None:
        self.memory[:] = json.dumps(state).encode().ljust(len(self.memory), b"\0")


def write_checkpoint(path: Path, *labels: str) -> Path:
    """What an export reads of a checkpoint, as its proof is left out here."""
    head = {"name": "topic", "kind": "single_label", "labels": labels, "weight": 1.0, "thresholds": None}
    head |= {"temperature": 1.0, "y_range": None, "parent": None, "parent_of": None}
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"polyhead": {"max_length": 8, "heads": [head]}}))
    for name in ("model.safetensors", "tokenizer.json", "golden.jsonl", "metrics.json"):
        (path / name).write_text(f"{name} of {labels}")
    (path / "report").mkdir()
    (path / "report" / "index.html").write_text("report")
    return path


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_model(model: Path, text: str | None = None) -> tuple[int, dict[str, bytes]]:
    """Reads a model as Triton would: the version that its config serves, and that version's checkpoint.

    Raises:
        AssertionError: Triton could not load it, or would serve labels of another version.
    """
    assert (model / "config.pbtxt").is_file(), f"{model.name} has no config.pbtxt"
    text = text or (model / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    present = sorted(int(path.name) for path in model.iterdir() if path.name.isdecimal())
    served = list(config.version_policy.specific.versions) or present[-1:]
    assert len(served) == 1, f"{model.name} serves {served}"
    folder = model / str(served[0])
    assert (folder / "model.py").is_file(), f"{folder} has no model.py"
    heads = json.loads((folder / "checkpoint" / "config.json").read_text())["polyhead"]["heads"]
    columns = [f"{head['name']}/{label}" for head in heads for label in head["labels"]]
    (labels,) = {output.label_filename for output in config.output if output.label_filename}
    found = (model / labels).read_text().splitlines()
    assert found == columns, f"{folder} has the columns {columns}, and the labels {found}"
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o022 == 0, f"{path} is writable by others"
        assert path.stat().st_mode & 0o004 == 0o004, f"{path} is not readable"
    return served[0], content(folder / "checkpoint")


def read_like_triton(place: Path) -> dict[str, tuple[int, dict[str, bytes]]]:
    """All models of a repository. Triton takes each of its folders for one."""
    return {path.name: read_model(path) for path in place.iterdir() if path.is_dir()}


class Scenario:
    """One export or deployment.

    Attributes:
        prepare: makes the repository before it.
        attempt: does it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / "repository"
        self.old = folder / "old"
        self.new = folder / "new"
        self.server = SharedServer(self.place)
        self.name = NAME

    def prepare(self) -> None:
        """One version."""
        export.export_checkpoint(self.old, self.place)

    def attempt(self) -> None:
        """A next version."""
        export.export_checkpoint(self.new, self.place, version=2, allow_schema_change=True)

    def is_done(self) -> bool:
        """Whether it was killed after its last step. A deployment is repeated, so that --keep is carried out."""
        model = self.place / self.name
        served = repository.served_versions(model) if model.exists() else []
        return any(content(model / str(version) / "checkpoint") == content(self.new) for version in served)


class FirstExport(Scenario):
    """The repository does not exist."""

    def prepare(self) -> None:
        """Nothing."""

    def attempt(self) -> None:
        """Makes the repository."""
        export.export_checkpoint(self.new, self.place)


class CheckoutExport(FirstExport):
    """The repository is a checkout: there is all except a checkpoint."""

    def prepare(self) -> None:
        """Copies the template."""
        template = export._template()
        (self.place / NAME / "1").mkdir(parents=True)
        for name in ("config.pbtxt", "1/model.py"):
            shutil.copyfile(template / name, self.place / NAME / name)


class SecondModel(Scenario):
    """Another model beside one that serves."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.name = "other"

    def attempt(self) -> None:
        """Makes its folder."""
        export.export_checkpoint(self.new, self.place, "other")


class NextVersion(Scenario):
    """A version above the served one."""


class Replace(Scenario):
    """The served version gets another checkpoint with other labels."""

    def attempt(self) -> None:
        """Replaces it."""
        export.export_checkpoint(self.new, self.place, replace=True, allow_schema_change=True)


class OldRelease(Scenario):
    """A repository of an older release: the highest version is served, and labels.txt belongs to all versions."""

    def prepare(self) -> None:
        """As an older release left it."""
        super().prepare()
        model = self.place / NAME
        os.rename(model / "1" / "labels.txt", model / "labels.txt")
        (model / "config.pbtxt").write_text(OLD_CONFIG)


class OldReleaseReplace(OldRelease, Replace):
    """Its version is replaced."""


class Deploy(Scenario):
    """A deployment, with two versions on the disk of which --keep allows one."""

    def prepare(self) -> None:
        """Version 2 serves."""
        super().prepare()
        export.export_checkpoint(self.old, self.place, version=2)
        self.server.load(1)

    def is_done(self) -> bool:
        """Never: the next one removes what --keep does not allow."""
        return False

    def attempt(self) -> None:
        """Deploys the new checkpoint."""
        wanted = deploy.Deployment(
            self.new, self.place, keep=1, load_timeout_s=1, verify_timeout_s=0.01, allow_schema_change=True
        )
        deploy.deploy(wanted, self.server)  # type: ignore[arg-type]


class RollBack(Deploy):
    """A deployment whose live answers are wrong the first time."""

    def attempt(self) -> None:
        """Is rolled back."""
        if STEPS.is_on:
            deploy.verify = wrong_answers
        super().attempt()


class OldReleaseDeploy(OldRelease, Deploy):
    """A deployment to a repository of an older release."""

    def prepare(self) -> None:
        """Version 1 serves."""
        OldRelease.prepare(self)
        self.server.load(1)


SCENARIOS = (
    FirstExport, CheckoutExport, SecondModel, NextVersion, Replace, OldRelease, OldReleaseReplace, Deploy, RollBack,
    OldReleaseDeploy,
)  # fmt: skip


def wrong_answers(*_: Any) -> float:
    """The server's answers are wrong."""
    raise ToleranceError("wrong answers")


def leave_out_proofs() -> None:
    """Nothing here computes; the steps of a proof change no file."""
    export.prove = lambda *_: None
    deploy.prove_copy = lambda checkpoint, staged, precision: SimpleNamespace(
        checkpoint=SimpleNamespace(golden=list),
        schema=Interface.of_checkpoint(staged / "checkpoint").schema,
        precision="fp32",
    )
    deploy.verify = lambda *_: 0.0
    deploy.time = SimpleNamespace(monotonic=deploy.time.monotonic, sleep=lambda seconds: None)


def run_in_fork(action: Callable[[], None], fault: str = "kill", at: int = sys.maxsize) -> tuple[int | None, str, int]:
    """Runs it in a process with a fault at one step.

    Returns:
        The exit code (None: it was killed), what it wrote, and the number of its steps.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.umask(0o077)
        STEPS.count, STEPS.fault, STEPS.fault_at, STEPS.is_on = 0, fault, at, True
        code = 0
        try:
            action()
        except PolyheadError as error:
            print(f"refused: {error}")
            code = 1
        except BaseException:
            traceback.print_exc()
            code = 2
        STEPS.is_on = False
        print(f"steps={STEPS.count}", flush=True)
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        written = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    steps = int(written.rsplit("steps=", 1)[1]) if "steps=" in written else 0
    return (None if code < 0 else code), written, steps


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """A folder with two checkpoints, removed at the end."""
    folder.mkdir()
    write_checkpoint(folder / "old", "a", "b")
    write_checkpoint(folder / "new", "b", "c", "d")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def try_fault(kind: type[Scenario], folder: Path, fault: str, at: int) -> tuple[bool, list[str]]:
    """One attempt with a fault at one step; whether it was reached, and what is wrong afterwards."""
    with fresh(folder):
        scenario = kind(folder)
        scenario.prepare()
        had_models = [path for path in folder.glob("repository/*") if path.is_dir() and kind is not CheckoutExport]
        before = read_like_triton(scenario.place) if had_models else {}
        code, written, _ = run_in_fork(scenario.attempt, fault, at)
        is_reached = code is None or "No space left" in written or "Read-only" in written
        try:
            check_repository(scenario, before)
            if code == 2:
                return is_reached, [f"{fault} at {at}: no clean error:\n{written}"]
            if at % 2:
                take_back_interrupted(scenario.place, lambda line: None)
                if before:
                    scenario.server.load(1)
                    check_repository(scenario, before)
                    marked = list(scenario.place.glob(f"*/*/{repository.UNCOMMITTED}"))
                    assert not marked, f"not taken back: {marked}"
            if not scenario.is_done():
                scenario.attempt()
            check_end(scenario)
        except (AssertionError, PolyheadError, OSError, ValueError) as error:
            return is_reached, [f"{fault} at {at}: {error!r}\n{written}\n{traceback.format_exc()}"]
    return is_reached, []


def check_repository(scenario: Scenario, before: dict[str, tuple[int, dict[str, bytes]]]) -> None:
    """A start of Triton would serve what was served before, or the new checkpoint; raises AssertionError else."""
    if not before and not list(scenario.place.glob(f"{scenario.name}/*/checkpoint")):
        return  # nothing was served, and nothing is; what counts is that the next export succeeds
    found = read_like_triton(scenario.place)
    assert before.keys() <= found.keys() <= {*before, scenario.name}, f"models {list(found)}"
    for name, (version, checkpoint) in found.items():
        is_new = name == scenario.name and checkpoint == content(scenario.new) and not isinstance(scenario, RollBack)
        assert is_new or (version, checkpoint) == before.get(name), f"{name}: version {version} is neither old nor new"


def check_end(scenario: Scenario) -> None:
    """The new checkpoint is served and nothing is left over; raises AssertionError else."""
    version, checkpoint = read_like_triton(scenario.place)[scenario.name]
    assert checkpoint == content(scenario.new), f"version {version} is not the new checkpoint"
    if isinstance(scenario, Deploy):
        assert scenario.server.version() == version, f"the server serves {scenario.server.version()}, not {version}"
    if not isinstance(scenario, Deploy):
        take_back_interrupted(scenario.place, lambda line: None)
    hidden = [str(path) for path in scenario.place.rglob(".*") if path.suffix != ".lock"]
    assert not hidden, f"left over: {hidden}"


def main() -> None:
    """Tries every fault at every step of every scenario."""
    folder = Path(sys.argv[1])
    leave_out_proofs()
    sys.stdout, output = sys.stderr, sys.stdout
    results: dict[str, dict[str, tuple[int, list[str]]]] = {}
    for kind in SCENARIOS:
        results[kind.__name__] = {}
        for fault in FAULTS:
            findings: list[str] = []
            at = 0
            is_reached = True
            while is_reached:
                at += 1
                is_reached, found = try_fault(kind, folder / "work", fault, at)
                findings += found
            results[kind.__name__][fault] = (at - 1, findings)
    json.dump(results, output)


if __name__ == "__main__":
    main()
