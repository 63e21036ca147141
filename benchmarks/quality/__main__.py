"""``python -m benchmarks.quality``: runs all methods on all data sets, and writes the result, its plot and its page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.answers import Answers, read_answers
from benchmarks.quality.data_sets import DATA_SETS, DEBIAN, ROOT, TEST, TRAIN, DataSet, DataSetError, Parts, read_parts
from benchmarks.quality.methods import METHODS, Method
from benchmarks.quality.page import PAGE, write_page
from benchmarks.quality.peer_data import make_head
from benchmarks.quality.plot import plot
from benchmarks.quality.runs import Task, prepare, run
from benchmarks.quality.scores import make_truth, over_seeds, score_head_of_all, score_outside, summarize
from benchmarks.result import RESULTS, write_result

ROWS_OF_REHEARSAL = 120  # of each part


def main(options: Sequence[str] | None = None) -> None:
    """Runs what has no result yet, and prints one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/public"), help="folder of the public files")
    parser.add_argument("--debian", type=Path, default=Path("data/debian"), help="folder of polyhead-dataset debian")
    parser.add_argument("--sets", nargs="+", choices=DATA_SETS, default=list(DATA_SETS))
    parser.add_argument("--peers", nargs="+", choices=METHODS, default=list(METHODS), help="methods that run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method that has a seed")
    parser.add_argument("--minutes", type=float, default=60.0, help="a run that takes longer is stopped and has failed")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="finished runs are kept here")
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.json")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that gets the tables")
    parser.add_argument("--rehearse", action="store_true", help="few rows and tiny networks: seconds; writes no page")
    arguments = parser.parse_args(options)
    methods = [METHODS[name] for name in METHODS if name in arguments.peers]
    missing = {method.name: method.why_missing for method in methods if method.why_missing is not None}
    for name, why in missing.items():
        print(f"{name} does not run: {why}", flush=True)
    methods = [method for method in methods if method.name not in missing]
    try:
        read = {name: _read(DATA_SETS[name], arguments) for name in arguments.sets}
    except DataSetError as error:
        parser.error(str(error))
    sets = {name: _measure(DATA_SETS[name], parts, methods, arguments) for name, parts in read.items()}
    seconds = sum(one["seconds"] for found in sets.values() for runs in found["runs"].values() for one in runs)
    summary = summarize(sets, seconds / 3600)
    described = {"methods": {method.name: method.title for method in methods}, "missing": missing}
    result = {**summary, **described, "seeds": arguments.seeds, "minutes": arguments.minutes, "sets": sets}
    write_result(arguments.out, result, plot(result))
    if not arguments.rehearse:
        write_page(arguments.page, result)
    print(json.dumps(summary))


def _source(data_set: DataSet, arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.debian if data_set.name == DEBIAN else arguments.data
    return ROOT / folder


def _read(data_set: DataSet, arguments: argparse.Namespace) -> Parts:
    most = ROWS_OF_REHEARSAL if arguments.rehearse else None
    return read_parts(data_set, _source(data_set, arguments), most)


def _measure(
    data_set: DataSet, parts: Parts, methods: Sequence[Method], arguments: argparse.Namespace
) -> dict[str, Any]:
    """All methods on one data set."""
    work = arguments.work.resolve() / data_set.name
    limit_s = arguments.minutes * 60
    task = Task(data_set, parts, _source(data_set, arguments), work / "rows", work, limit_s, arguments.rehearse)
    prepare(task)
    runs: dict[str, list[dict[str, Any]]] = {}
    answers: dict[str, list[Answers]] = {}
    for method in methods:
        runs[method.name], answers[method.name] = [], []
        for seed in range(1, arguments.seeds + 1) if method.is_seeded else (1,):
            found = run(task, method, seed)
            if found["failed"] is None:
                answers[method.name].append(read_answers(task.folder(method, seed) / "answers.npz"))
            took = f"{found['seconds']:.0f} s, {found['memory_mb']:.0f} MB"
            print(f"{data_set.name}, {method.name}, seed {seed}: {found['failed'] or took}", flush=True)
            runs[method.name].append({"seed": seed, **{key: value for key, value in found.items() if key != "inputs"}})
    return {
        "rows": {part: len(rows) for part, rows in parts.items()},
        "texts_in_two_parts": _shared_texts(parts),
        "config": data_set.config,
        "heads": {name: _score(data_set, name, parts, answers) for name in data_set.heads},
        "outside": _score_outside(answers),
        "runs": runs,
    }


def _score(data_set: DataSet, name: str, parts: Parts, answers: dict[str, list[Answers]]) -> dict[str, Any]:
    head = make_head(name, data_set.heads[name], [row.labels for row in parts[TRAIN]])
    truth = make_truth(head, [row.labels[name] for row in parts[TEST]], [row.labels[name] for row in parts[TRAIN]])
    by_method = {method: [run.heads[name] for run in runs if name in run.heads] for method, runs in answers.items()}
    return score_head_of_all(truth, by_method)


def _score_outside(answers: dict[str, list[Answers]]) -> dict[str, Any]:
    scored = {method: [score for run in runs if (score := score_outside(run))] for method, runs in answers.items()}
    return {method: over_seeds(scores) for method, scores in scored.items() if scores}


def _shared_texts(parts: Parts) -> int:
    """Test rows whose text is also a training row's."""
    texts = {row.text for row in parts[TRAIN]}
    return sum(row.text in texts for row in parts[TEST])


if __name__ == "__main__":
    main()
