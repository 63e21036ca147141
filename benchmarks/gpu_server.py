"""The second part of `benchmarks.gpu_check`: the real tritonserver under load, and the engine beside its peers."""

from __future__ import annotations

import http.client
import importlib.util
import json
import multiprocessing
import shutil
import statistics
import struct
import sys
import sysconfig
import tarfile
import threading
import time
import venv
import zipfile
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check import Record, StepContext
from benchmarks.gpu_steps import corpus, has_libpython, usual_checkpoint
from loadtest.local_server import LocalServer
from polyhead.export import export_checkpoint

MODEL = "gpt2_classifier"
NO_PATH = {"PYTHONPATH": ""}  # the server's environment has packages of its own
PROCESSES = 6  # that send; one Python process sends about a thousand requests per second
# Loads: name, clients per process, texts per request.
LOADS = (("one client, one text", 0, 1), ("64 texts per request", 8, 64), ("one text per request", 16, 1))
PEERS = ("transformers_bf16_sorted", "transformers_bf16_batch64", "compile_bf16")


def server(given: StepContext, record: Record) -> None:
    """The real server with the model of GPT-2 small's shape: answers, latency of one text, and throughput."""
    shared = given.bundle / "server" / "libpython3.12.so.1.0" if given.bundle else Path()
    if not has_libpython() and not shared.is_file():
        record("left out", f"this Python has no shared library, which Triton's Python backend needs: {sys.version}")
        return
    python = server_python(given)
    if python is None:
        record("left out", "the bundle has no tritonserver")
        return
    command = [str(python), "-m", "polyhead_serving.serve"]
    checkpoint, token_ids = usual_checkpoint(given)
    texts = corpus(given)[0]
    tokens = float(np.mean([len(ids) for ids in token_ids]))
    seconds = 1.0 if given.tiny else 8.0
    for name, gpu in {"as exported": False, "as exported with --gpu": True}.items():
        repository = given.scratch / f"repository-{'gpu' if gpu else 'usual'}"
        if not repository.exists():
            export_checkpoint(checkpoint.path, repository, gpu=gpu)
        began = time.perf_counter()
        with LocalServer(repository, "--device", given.device, environment=NO_PATH, command=command) as running:
            port = running.ports["http"]
            record(f"{name}: ready after s", round(time.perf_counter() - began, 1))
            record(f"{name}: schema", schema_of(port))
            for load, clients, size in LOADS:
                found = send(port, texts, clients, size, seconds)
                record(f"{name}: {load}", found | {"tok_s": round(found["texts_s"] * tokens)})


def peers(given: StepContext, record: Record) -> None:
    """The engine and transformers on the same texts, in turns; a peer that computes something else is an error."""
    from benchmarks.peers.engines import PRODUCT, line_up
    from benchmarks.peers.peer import compare, reference_logits

    checkpoint, token_ids = usual_checkpoint(given)
    token_ids = token_ids[: 8 if given.tiny else 1024]
    tokens = sum(map(len, token_ids))
    names = [PRODUCT, *PEERS] if given.device == "cuda" else [PRODUCT, "transformers_fp32_batch8"]
    lined_up, left_out = line_up(checkpoint, given.device, names)
    record("left out", left_out)
    reference = reference_logits(checkpoint, token_ids, given.device)
    for peer in lined_up:
        peer.warm_up(token_ids)
        rates = []
        for _ in range(3):
            began = time.perf_counter()
            logits = peer.logits(token_ids)
            rates.append(tokens / (time.perf_counter() - began))
        agreement = compare(peer.name, peer.precision, logits, reference)
        record(peer.name, {"tok_s": round(statistics.median(rates)), "precision": peer.precision} | agreement)


def server_python(given: StepContext) -> Path | None:
    """The Python of an environment that has the bundle's tritonserver and NumPy 1.26; None if there is none.

    Triton's model processes read no PYTHONPATH, but the packages of the environment whose ``bin`` is first on PATH.
    """
    if importlib.util.find_spec("pytriton") is not None:
        return Path(sys.executable)
    source = given.bundle / "server" if given.bundle else None
    if source is None or not (source / "tritonserver.tar.xz").is_file():
        return None
    folder = (given.scratch / "server").resolve()
    python = folder / "bin" / "python"
    if python.exists():
        return python
    venv.EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    with tarfile.open(source / "tritonserver.tar.xz") as archive:
        archive.extractall(packages, filter="tar")
    for wheel in source.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    for program in ("bin/tritonserver", "python_backend_stubs/3.12/triton_python_backend_stub"):
        (packages / "pytriton" / "tritonserver" / program).chmod(0o755)
    shared = source / "libpython3.12.so.1.0"
    if shared.is_file() and not has_libpython():
        shutil.copy2(shared, folder / "lib")  # where polyhead-serve looks first
    others = [path for path in sys.path if path and Path(path).is_dir() and "lib-dynload" not in path]
    standard = sysconfig.get_path("stdlib")
    (packages / "others.pth").write_text("\n".join(path for path in others if path != standard), encoding="utf-8")
    return python


def schema_of(port: int) -> dict[str, Any]:
    """Precision and tolerance, as the served model says them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", f"/v2/models/{MODEL}/infer", *request_of(["schema"], "SCHEMA"))
    body = connection.getresponse().read()
    schema = json.loads(json.loads(body)["outputs"][0]["data"][0])
    return {name: schema[name] for name in ("precision", "tolerance")}


def request_of(texts: Sequence[str], output: str = "PREDICTION") -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference request: texts as binary data, the answers as JSON for SCHEMA, else binary."""
    rows = [text.encode() for text in texts]
    data = b"".join(struct.pack("<I", len(row)) + row for row in rows)
    header = json.dumps({
        "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [len(rows), 1],
                    "parameters": {"binary_data_size": len(data)}}],
        "outputs": [{"name": output, "parameters": {"binary_data": output != "SCHEMA"}}],
    }).encode()  # fmt: skip
    return header + data, {
        "Inference-Header-Content-Length": str(len(header)),
        "Content-Type": "application/octet-stream",
    }


def send(port: int, texts: Sequence[str], clients: int, size: int, seconds: float) -> dict[str, Any]:
    """Closed load: each client sends its next request when it has its answer.

    Args:
        clients: per process; 0 is one client in one process.
        size: texts per request.
    """
    context = multiprocessing.get_context("fork")
    processes = PROCESSES if clients else 1
    queue = context.SimpleQueue()
    started = [
        context.Process(target=_client_process, args=(queue, port, texts[n::processes], max(1, clients), size, seconds))
        for n in range(processes)
    ]
    for process in started:
        process.start()
    results = [queue.get() for _ in started]
    for process in started:
        process.join()
    latencies = [latency for found, _ in results for latency in found]
    if not latencies:
        raise RuntimeError(f"no request was answered: {results[0][1][:1]}")
    p50, p99 = np.percentile(latencies, [50, 99])
    failed = [error for _, errors in results for error in errors]
    return {
        "texts_s": round(len(latencies) * size / seconds, 1),
        "p50_ms": round(1000 * float(p50), 3),
        "p99_ms": round(1000 * float(p99), 3),
        "requests": len(latencies),
        "failed": len(failed),
        "first failure": failed[0] if failed else None,
    }


def _client_process(queue: Any, port: int, texts: Sequence[str], clients: int, size: int, seconds: float) -> None:
    latencies: list[float] = []
    errors: list[str] = []
    cut = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)] or [texts]
    requests = [request_of(part) for part in cut]
    begins = time.monotonic() + 0.5  # requests of the first half second are not counted
    ends = begins + seconds

    def client(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for body, headers in cycle(requests[first:] + requests[:first]):
            began = time.monotonic()
            if began > ends:
                return
            try:
                connection.request("POST", f"/v2/models/{MODEL}/infer", body, headers)
                answer = connection.getresponse()
                said = answer.read()
            except (OSError, http.client.HTTPException) as error:
                errors.append(repr(error))
                connection.close()
                continue
            if answer.status != 200:
                errors.append(f"{answer.status} {said[:200]!r}")
            elif began >= begins:
                latencies.append(time.monotonic() - began)

    threads = [threading.Thread(target=client, args=(n * len(requests) // clients,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.put((latencies, errors[:20]))
