"""Killed at any point, the same command ends with the output of an unbroken run: each row once, in order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from polyhead_client.testing import Failure
from polyhead_scoring import run_folder
from polyhead_scoring.job import Request
from polyhead_scoring.run import run
from polyhead_scoring.server_answers import ServerOptions
from polyhead_scoring.storage import Place
from tests.scoring.conftest import Served
from tests.scoring.texts import plain_rows, read_rows, write_jsonl
from tests.tiny import write_tiny_checkpoint

COMMAND = [sys.executable, "-m", "polyhead_scoring.command"]


class Killed(BaseException):
    """What a process is that goes no further."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ends the run before its change number `n` of the disk: a file written, moved or removed."""
    left = [0]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            if left[0] < 0:
                raise AssertionError("a killed process changes nothing more")
            return change(*arguments, **options)

        return wrapped

    def restore_and_arm(number: int) -> None:
        left[0] = number

    class Os:
        """The module as `run_folder` sees it."""

        replace = staticmethod(counted(os.replace))

    monkeypatch.setattr(Place, "write", counted(Place.write))
    monkeypatch.setattr(Place, "remove", counted(Place.remove))
    monkeypatch.setattr(run_folder, "os", Os)
    # What Python itself does while an exception passes is not done by a killed process.
    monkeypatch.setattr(run_folder.RunFolder, "discard", lambda folder: None)
    return restore_and_arm


def attempts(request: Request, kill_at: Callable[[int], None]) -> Iterator[int]:
    """Runs and kills at change 1, 2, 3, …, each time from what the one before left, until a run ends."""
    number = 1
    while True:
        kill_at(number)
        try:
            run(request, Console(quiet=True))
        except Killed:
            yield number
            number += 1
        else:
            return


@pytest.mark.parametrize("output", ["out.csv", "out", "plan.json"])
@pytest.mark.parametrize("way", ["server", "engine"])
@pytest.mark.parametrize("anew", [False, True])
def test_killed_before_each_change(
    way: str,
    output: str,
    anew: bool,
    fake: Served,
    base_checkpoint: Path,
    tmp_path: Path,
    kill_at: Callable[[int], None],
) -> None:
    """Placed at every write, move and removal, kills leave what the next run ends well with, bad rows included.

    Each kill is tried on what all kills before it left, or (`anew`) on an empty folder.
    """
    rows: list[dict[str, Any]] = [*plain_rows(4), {"id": 4, "text": None}]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    model: dict[str, Any] = {"checkpoint": base_checkpoint, "precision": "fp32"}
    if way == "server":
        model = {"server": ServerOptions((fake.url,))}

    def request(folder: Path) -> Request:
        return Request(data=(str(file),), output=str(folder / output), partition_tokens=40, progress=False, **model)

    kill_at(10**9)
    (tmp_path / "whole").mkdir()
    run(request(tmp_path / "whole"), Console(quiet=True))
    expected = read_rows(tmp_path / "whole" / output)
    assert [row["error"] is None or row["error"] == "" for row in expected] == [True] * 4 + [False]
    kills = 0
    if anew:
        for number in range(1, 100):
            folder = tmp_path / f"anew-{number}"
            folder.mkdir()
            kill_at(number)
            try:
                run(request(folder), Console(quiet=True))
                break
            except Killed:
                kills += 1
            kill_at(10**9)
            run(request(folder), Console(quiet=True))
            check_end(folder, output, expected)
    else:
        (tmp_path / "again").mkdir()
        kills = sum(1 for _ in attempts(request(tmp_path / "again"), kill_at))
        check_end(tmp_path / "again", output, expected)
    assert kills > (8 if anew else 3)


def check_end(folder: Path, output: str, expected: list[dict[str, Any]]) -> None:
    """The rows are those of an unbroken run, and nothing is left that it does not leave."""
    assert read_rows(folder / output) == expected
    if output == "out":
        parts = {f"part-{number:06d}.parquet" for number in range(len(list((folder / output).glob("part-*"))))}
        assert {path.name for path in (folder / output).iterdir()} == parts | {"_manifest.json", "_errors.jsonl"}
        assert len(json.loads((folder / output / "_manifest.json").read_text())["partitions"]) == len(parts)
    else:
        names = {output, f"{output}.manifest.json", f"{output}.errors.jsonl"}
        assert {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize("output", ["out.parquet", "out.csv", "out"])
def test_killed_at_random_with_a_server(output: str, fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """SIGKILL three times: output and failed rows are those of an unbroken run, and little is asked again."""
    total = 3000
    lines = [f'{{"text": "row {n}", "id": {n}}}' if n % 7 else '{"text": null}' for n in range(total)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = ["--partition-tokens", "200"]
    assert score("in.jsonl", "whole_" + output, *options).exit_code == 1
    fake.server.requests.clear()
    fake.server.failure = Failure(hang_s=0.05)  # so slow that the run does not end before it is killed
    command = [*COMMAND, str(tmp_path / "in.jsonl"), "--output", str(tmp_path / output), "--server", fake.url,
               "--batch-size", "16", "--workers", "2", *options]  # fmt: skip
    done = tmp_path / output / "_run" / "done" if output == "out" else tmp_path / f"{output}.partial" / "done"
    chance = random.Random(output)
    for share in (0.1, 0.4, 0.7):
        killed = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not done.exists() or len(list(done.glob("part-*"))) < share * 28:  # partitions
            assert killed.poll() is None, killed.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    fake.server.failure = None
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "continuing: " in ended.stderr
    assert read_rows(tmp_path / output) == read_rows(tmp_path / ("whole_" + output))
    aside = ["_errors.jsonl"] if output == "out" else [".errors.jsonl"]
    for suffix in aside:
        name = f"{output}/{suffix}" if output == "out" else output + suffix
        assert (tmp_path / name).read_bytes() == (tmp_path / f"whole_{name}").read_bytes()
    assert len(fake.texts) < 1.5 * total, "what was answered before a kill was asked again"


def test_killed_at_random_with_the_engine(tmp_path: Path) -> None:
    """SIGKILL twice at random moments, also while the model loads: the output is that of an unbroken run."""
    checkpoint = tmp_path / "checkpoint"
    write_tiny_checkpoint(checkpoint, n_layer=4)
    rows = plain_rows(600)
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(output: str) -> list[str]:
        return [*COMMAND, str(file), "--output", str(tmp_path / output), "--checkpoint", str(checkpoint),
                "--partition-tokens", "400"]  # fmt: skip

    started = time.monotonic()
    subprocess.run(command("whole.csv"), env=environment, check=True, capture_output=True)
    lasts = time.monotonic() - started
    chance = random.Random(5)
    for _ in range(2):
        killed = subprocess.Popen(command("out.csv"), env=environment, stderr=subprocess.PIPE)
        try:
            killed.communicate(timeout=chance.uniform(0.3, 0.8) * lasts)
        except subprocess.TimeoutExpired:
            killed.kill()
            killed.communicate()
    subprocess.run(command("out.csv"), env=environment, check=True, capture_output=True)
    found, expected = read_rows(tmp_path / "out.csv"), read_rows(tmp_path / "whole.csv")
    assert [row["id"] for row in found] == [str(row["id"]) for row in rows]
    assert found == expected
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("wanted", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("way", ["server", "engine", "ray"])
def test_interrupted(way: str, wanted: signal.Signals, fake: Served, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end a run with exit code 130, also if the parent ignores them; the same command goes on."""
    file, out = write_jsonl(tmp_path / "in.jsonl", plain_rows(600)), tmp_path / "out.jsonl"
    options = ["--server", fake.url, "--batch-size", "8"]
    if way != "server":
        write_tiny_checkpoint(tmp_path / "checkpoint", n_layer=24)
        options = ["--checkpoint", str(tmp_path / "checkpoint")] + (["--address", "local"] if way == "ray" else [])
    fake.server.failure = Failure(hang_s=0.05)
    command = ["bash", "-c", "trap '' INT TERM; exec \"$@\"", "-", *COMMAND, str(file), "--output", str(out), *options,
               "--partition-tokens", "200", "--quiet"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    done = tmp_path / "out.jsonl.partial" / "done"
    while not list(done.glob("part-*.json")):
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.01)
    run.send_signal(wanted)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert said.splitlines()[-1] == "polyhead-score: interrupted; the same command continues from here"
    assert "Traceback" not in said
    assert list(done.glob("part-*.json"))
    fake.server.failure = None
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "continuing: " in ended.stderr
    assert [row["id"] for row in read_rows(out)] == list(range(600))
