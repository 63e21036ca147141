"""The first run on a new GPU: correctness and speed in two parts of at most five and three minutes.

It needs torch and Python 3.11 or later, and no network and none of our environments: what is missing comes from the
wheels in ``--bundle`` (setup/gpu_bundle.sh makes them), our own packages from this checkout. Each step of
`benchmarks.gpu_steps` and `benchmarks.gpu_server` runs in a process of its own, because an error on a GPU spoils the
process. A step that fails or takes too long is recorded, and the next one begins. The results are written after each
measured value, so that a killed run leaves what it has measured.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import multiprocessing
import os
import platform
import signal
import sys
import time
import tomllib
import traceback
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("classifier", "rows", "serving", "training", "scoring", "client")
LIMITS_S = {1: 300.0, 2: 180.0}  # per part
# Steps of each part in their order: name, module and the most seconds that it may take.
STEPS: dict[int, list[tuple[str, str, float]]] = {
    1: [
        ("facts", "benchmarks.gpu_steps", 60),
        ("tests", "benchmarks.gpu_steps", 110),
        ("served", "benchmarks.gpu_steps", 60),
        ("speed", "benchmarks.gpu_steps", 80),
        ("profile", "benchmarks.gpu_steps", 40),
        ("training", "benchmarks.gpu_steps", 80),
        ("variants", "benchmarks.gpu_steps", 40),
        ("attention", "benchmarks.gpu_attention", 30),
    ],
    2: [("server", "benchmarks.gpu_server", 150), ("peers", "benchmarks.gpu_server", 120)],
}
TINY_PATIENCE = 4  # times as long may a rehearsal take, which is no measurement
MESSAGE = 4000  # characters of an error that are kept

Record = Callable[[str, Any], None]


@dataclass(frozen=True)
class StepContext:
    """What a step gets.

    Attributes:
        scratch: a folder that all steps share.
        bundle: the folder of wheels; None if there is none.
        texts: where the texts are; empty: the step makes some up. `texts_from` says which of these it is.
        tiny: shapes of a rehearsal, so that all steps together take seconds on a CPU.
        earlier: the results of the steps before.
    """

    device: str
    scratch: Path
    bundle: Path | None
    texts: tuple[Path, ...]
    texts_from: str
    tiny: bool
    earlier: Mapping[str, Any] = field(default_factory=dict)


def main(options: Sequence[str] | None = None) -> int:
    """Runs the parts and prints each step's result; 0 only if no step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--part", type=int, choices=sorted(STEPS), nargs="+", default=sorted(STEPS))
    parser.add_argument("--steps", nargs="+", help="only these steps of the parts; default: all")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of gpu-check-PART.json")
    parser.add_argument("--bundle", type=Path, help="folder of setup/gpu_bundle.sh")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "debian", help="folder of polyhead-dataset debian")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal of the script")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a rehearsal")
    arguments = parser.parse_args(options)
    add_packages(arguments.bundle, arguments.out / "site")
    context = start_context(arguments.device)
    texts, texts_from = find_texts(arguments.data, arguments.bundle)
    scratch = arguments.out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    has_failed = False
    for part in arguments.part:
        results = Results(arguments.out / f"gpu-check-{part}.json", arguments.device)
        patience = TINY_PATIENCE if arguments.tiny else 1
        ends = time.monotonic() + patience * LIMITS_S[part]
        for name, module, limit_s in STEPS[part]:
            if arguments.steps and name not in arguments.steps:
                continue
            given = StepContext(
                arguments.device, scratch, arguments.bundle, texts, texts_from, arguments.tiny, results.values
            )
            status = run_step(context, name, module, min(patience * limit_s, ends - time.monotonic()), given, results)
            has_failed |= status != "ok"
    return int(has_failed)


class Results:
    """The results of a part, written to its file after each value: ``steps`` by name, each with ``status``."""

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self._described = {"device": device, "python": platform.python_version(), "argv": sys.argv[1:]}
        path.parent.mkdir(parents=True, exist_ok=True)

    def put(self, step: str, name: str, value: Any) -> None:
        """Adds a value of a step, and writes all."""
        self.values.setdefault(step, {})[name] = value
        text = json.dumps(self._described | {"steps": self.values}, indent=1, default=str) + "\n"
        written = self.path.with_suffix(".tmp")
        written.write_text(text, encoding="utf-8")
        written.replace(self.path)


def run_step(context: Any, name: str, module: str, limit_s: float, given: StepContext, results: Results) -> str:
    """Runs a step in a new process, and records what it sends; returns ``ok``, ``failed`` or ``took too long``."""
    if limit_s < 1:
        results.put(name, "status", "no time was left")
        return "no time was left"
    began = time.monotonic()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=step_process, args=(module, name, given, sender))
    process.start()
    sender.close()
    status = "failed"
    try:
        while receiver.poll(max(0.0, began + limit_s - time.monotonic())):
            key, value = receiver.recv()
            if key == "status":
                status = value
            else:
                results.put(name, key, value)
                print(f"{name}: {key}: {json.dumps(value, default=str)[:1000]}", flush=True)
        status = "took too long"
    except EOFError:  # the process has ended
        pass
    finally:
        receiver.close()
    if status != "took too long":
        process.join(5)
    if process.is_alive():
        with suppress(ProcessLookupError):  # it has not come so far as to have a group
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.kill()
    process.join()
    if status == "failed" and process.exitcode:
        results.put(name, "exit code", process.exitcode)
    results.put(name, "status", status)
    results.put(name, "seconds", round(time.monotonic() - began, 1))
    print(f"{name}: {status} after {results.values[name]['seconds']} s", flush=True)
    return status


def step_process(module: str, name: str, given: StepContext, sender: Connection) -> None:
    """The step's process: calls the function of that name, and sends what it records."""
    os.setsid()
    logged: list[str] = []  # what the product warns of, for example that it cannot use a fast path

    class Recorder(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            logged.append(entry.getMessage()[:MESSAGE])
            sender.send(("warnings", list(logged)))

    logging.getLogger("polyhead").addHandler(Recorder(logging.WARNING))
    try:
        step = getattr(importlib.import_module(module), name)
        step(given, lambda key, value: sender.send((key, value)))
        sender.send(("status", "ok"))
    except BaseException as error:  # a benchmark ends with SystemExit if a peer computes something else
        sender.send(("error", f"{error!r}"[:MESSAGE]))
        sender.send(("traceback", traceback.format_exc()[-MESSAGE:]))
    finally:
        sender.close()


def add_packages(bundle: Path | None, site: Path) -> None:
    """Makes our packages and, from the bundle, those that are missing here importable, in child processes too."""
    paths = [str(ROOT), *(str(ROOT / package) for package in PACKAGES)]
    for wheel in sorted((bundle / "site").glob("*.whl")) if bundle else []:
        with zipfile.ZipFile(wheel) as archive:
            names = {Path(name).parts[0].partition(".")[0] for name in archive.namelist()}
            modules = {name for name in names if name.isidentifier() and not name.startswith("_")}
            if not all(importlib.util.find_spec(module) for module in modules):
                archive.extractall(site)
                print(f"taken from the bundle: {wheel.name}", flush=True)
    for package in PACKAGES:  # commands read their version
        described = tomllib.loads((ROOT / package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        name = described["name"].replace("-", "_")
        metadata = site / f"{name}-{described['version']}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(f"Name: {described['name']}\nVersion: {described['version']}\n", encoding="utf-8")
    paths.append(str(site.resolve()))
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])


def start_context(device: str) -> Any:
    """How steps are started: as forks of this process, which has imported the libraries; else as new interpreters.

    A fork cannot use CUDA if an import here has already called the driver. A trial finds out.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to see whether there is a GPU without the driver
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.pop("POLYHEAD_PRECISION", None)  # what is served without it is checked
    fork = multiprocessing.get_context("fork")
    try:
        importlib.import_module("benchmarks.gpu_steps")
    except ImportError as error:
        print(f"a package is missing, so most steps will fail: {error}", flush=True)
        return fork
    trial = fork.Process(target=_touch, args=(device,))
    trial.start()
    trial.join(60)
    if trial.exitcode != 0:
        trial.kill()
        print("a fork cannot use the device: each step starts a new interpreter", flush=True)
        return multiprocessing.get_context("spawn")
    return fork


def _touch(device: str) -> None:
    import torch

    torch.ones(1, device=device).sum().item()


def find_texts(data: Path, bundle: Path | None) -> tuple[tuple[Path, ...], str]:
    """The files of texts to use, and what they are: the Debian data set, or the bundle's part of it, or none."""
    if (data / "train.jsonl").is_file():
        return (data / "train.jsonl", data / "test.jsonl"), "Debian texts"
    if bundle and (bundle / "texts.jsonl").is_file():
        return (bundle / "texts.jsonl",), "the bundle's Debian texts"
    return (), "made-up texts: words drawn by Zipf's law, lengths log-normal around 95 tokens"


if __name__ == "__main__":
    sys.exit(main())
