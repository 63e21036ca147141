"""One run: a method answers the test rows of a data set with one seed, in processes of its own, once.

A run's folder holds ``result.json``, ``answers.npz`` and ``log.txt``. It runs again only if it failed or if its inputs
changed: the rows, the training config, a peer's code. The product's code is no input; ``commit`` says what it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.answers import Answers
from benchmarks.quality.data_sets import OUTSIDE, ROOT, TEST, DataSet, Parts
from benchmarks.quality.methods import PRODUCT, Method
from benchmarks.quality.peer_data import read_peer_data, write_peer_data
from benchmarks.quality.product import ProductError, confidences, part_file, read_predictions, write_config
from polyhead.errors import PolyheadError
from polyhead.files import write_file
from polyhead.predictor import Predictor

HERE = Path(__file__).parent
COMMANDS = Path(sys.executable).parent


@dataclass(frozen=True)
class Task:
    """What a run needs.

    Attributes:
        source: the folder of the public files.
        data: the folder of `prepare`.
        work: the folder of the data set's runs.
        limit_s: a run that takes longer is ended and counts as failed.
    """

    data_set: DataSet
    parts: Parts
    source: Path
    data: Path
    work: Path
    limit_s: float
    rehearse: bool

    def folder(self, method: Method, seed: int) -> Path:
        """The folder of one run."""
        return self.work / f"{method.name}-{seed}"


def prepare(task: Task) -> None:
    """Writes the rows of all parts: as peers get them, and as the product's config reads them."""
    task.data.mkdir(parents=True, exist_ok=True)
    write_peer_data(task.data, task.data_set, task.parts)
    for part, rows in task.parts.items():
        if part != OUTSIDE:
            task.data_set.write(rows, part_file(task.data, task.data_set, part))


def run(task: Task, method: Method, seed: int) -> dict[str, Any]:
    """The result of a run: of an earlier one if its inputs are the same, or of a new one."""
    folder = task.folder(method, seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.toml"
    if method.name == PRODUCT:
        write_config(
            config, task.data_set, task.source, task.data, folder / "checkpoint", seed, task.rehearse
        )  # fmt: skip
    inputs = _inputs(task, method, seed, config)
    target = folder / "result.json"
    if target.exists():
        earlier: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        if earlier["inputs"] == inputs and earlier["failed"] is None:
            return earlier
        target.unlink()
    print(f"{task.data_set.name}, {method.name}, seed {seed}: runs ...", flush=True)
    run_one = _train if method.name == PRODUCT else _ask_peer
    result = {"inputs": inputs, "commit": _commit(), **run_one(task, method, seed, folder)}
    write_file(target, json.dumps(result, indent=2) + "\n")
    return result


def _train(task: Task, method: Method, seed: int, folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    measured = _measure([str(COMMANDS / "polyhead-train"), str(folder / "config.toml"), "--restart"], task, folder)
    if measured["failed"] is not None:
        return measured
    try:
        _served_answers(task, folder).write(folder / "answers.npz")
    except (ProductError, PolyheadError) as error:  # hours of other runs may follow
        return measured | {"failed": str(error)}
    return measured


def _served_answers(task: Task, folder: Path) -> Answers:
    checkpoint, predictions = folder / "checkpoint", folder / "checkpoint" / "report" / "predictions.parquet"
    answers = read_predictions(predictions, read_peer_data(task.data).heads, task.parts[TEST])
    if task.data_set.rejecting is not None:
        predictor = Predictor.load(checkpoint)
        answers.inside, answers.outside = (
            confidences(predictor, [row.text for row in task.parts[part]], task.data_set.rejecting)
            for part in (TEST, OUTSIDE)
        )
    return answers


def _ask_peer(task: Task, method: Method, seed: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quality.peer_process", method.name, str(task.data.resolve())]
    command += [str((folder / "answers.npz").resolve()), "--seed", str(seed), "--limit-s", str(task.limit_s)]
    return _measure(command, task, folder)


def _measure(command: Sequence[str], task: Task, folder: Path) -> dict[str, Any]:
    """Runs the command through measured.py; ``failed`` says why it has no answers."""
    took, log = (folder / "measured.json").resolve(), (folder / "log.txt").resolve()
    launcher = [sys.executable, str(HERE / "measured.py"), str(took), str(task.limit_s), str(log)]
    subprocess.run([*launcher, *command], cwd=ROOT, check=True)
    measured: dict[str, Any] = json.loads(took.read_text(encoding="utf-8"))
    code, is_over = measured.pop("code"), measured.pop("is_over")
    failed = None
    if is_over:
        failed = f"was stopped after {task.limit_s / 60:.0f} minutes"
    elif code != 0:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        failed = f"ended with exit code {code}: {lines[-1] if lines else 'it said nothing'}"
    return measured | {"failed": failed}


def _inputs(task: Task, method: Method, seed: int, config: Path) -> dict[str, Any]:
    inputs: dict[str, Any] = {"data": _digest(sorted(task.data.iterdir())), "seed": seed}
    if method.name == PRODUCT:
        inputs["config"] = _digest([config])
    else:
        shared = ["answers", "peer_data", "peer_process"]
        own = f"{method.name}_peer" if method.package is not None else "linear"
        inputs["code"] = _digest([HERE / f"{name}.py" for name in (*shared, own)])
    return inputs | ({"limit_s": task.limit_s} if method.reads_limit else {})


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _commit() -> str:
    """The commit of the product's code, with a sign if files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
