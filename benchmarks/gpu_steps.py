"""The steps of `benchmarks.gpu_check` on the engine and on training; each records what it measures, value by value.

On a GPU times are read from CUDA events (``device_ms``) and from the clock with the wait for the result (``wall_ms``).
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.gpu_check import ROOT, Record, StepContext
from benchmarks.speed import linear_flops, median_s
from benchmarks.workload import (
    MAX_LENGTH,
    SCHEMA,
    TOKENIZER_VOCAB_SIZE,
    WEIGHT_STD,
    TokenIds,
    random_checkpoint,
    read_texts,
)
from polyhead.checkpoint import Checkpoint, read_checkpoint
from polyhead.encode import encode
from polyhead.engine import Engine
from polyhead.engine.cuda.forward import CUDAForward, fuses_tanh_gelu
from polyhead.engine.cuda.norm import TORCH_NORMS
from polyhead.engine.cuda.packed import PackedShape, cuda_recorder, pack
from polyhead.engine.micro_batch import micro_batches
from polyhead.engine.token_ids import checked
from polyhead.gate import distances
from polyhead.precision import TOLERANCE, fastest_precision
from polyhead.predictor import Predictor
from polyhead.schema import HeadKind
from polyhead_training.model.modeling import build_model
from polyhead_training.model.packing import collate
from polyhead_training.model.tokenizer import train_tokenizer

VERSIONS = ("torch", "triton", "transformers", "tokenizers", "numpy", "safetensors", "pydantic", "datasets")
TESTS = (
    "tests/cuda",
    "tests/classifier/test_engine_cuda.py",
    "tests/classifier/test_fused_norm.py",
    "tests/classifier/test_tile_attention.py",
    "tests/training/test_packed_attention.py",
    "tests/classifier/test_engine.py",
    "tests/classifier/test_memory.py",
)
TOKENS = (1, 16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768)
CORPUS_TEXTS = 4096
STEPS = 5  # of training
WARM_UP_STEPS = 3


def facts(given: StepContext, record: Record) -> None:
    """The machine, what its libraries do, and its two limits: matrix products and copies."""
    record("texts", given.texts_from)
    record("versions", {name: _version(name) for name in VERSIONS} | {"cuda": torch.version.cuda})
    record("libpython", has_libpython())
    on_gpu = given.device == "cuda"
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        gpu = f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory >> 30} GiB"
        record("gpu", f"{gpu}, {properties.multi_processor_count} multiprocessors")
        record("reduced precision sums", torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction)
    side, rows = (256, 256) if given.tiny else (8192, 16384)
    shapes = [(side, side, side)] + [(rows, *shape) for shape in ((768, 2304), (768, 768), (768, 3072), (3072, 768))]
    for dtype in (torch.bfloat16, torch.float32):
        rates = {}
        for shape in shapes:
            left, right = _random(shape[0], shape[1], given.device, dtype), _random(*shape[1:], given.device, dtype)
            ms = device_ms(given.device, partial(torch.mm, left, right), 3 if given.tiny else 20)
            rates["x".join(map(str, shape))] = round(2 * math.prod(shape) / ms / 1e9, 2)
        record(f"gemm TFLOP/s {str(dtype).removeprefix('torch.')}", rates)
    source = torch.empty(2**20 if given.tiny else 2**31, dtype=torch.uint8, device=given.device).random_()
    copied = torch.empty_like(source)
    record("copy GB/s", round(2 * source.numel() / device_ms(given.device, lambda: copied.copy_(source), 10) / 1e6, 1))
    record("fused gelu", fuses_tanh_gelu(torch.device(given.device), torch.bfloat16))
    if on_gpu:
        inputs = torch.ones(64, device="cuda")
        replay, output = cuda_recorder(torch.device("cuda"))(lambda: inputs * 2)
        inputs.fill_(21)
        replay()
        record("graph", output.unique().tolist() == [42.0])
    if not on_gpu or torch.cuda.get_device_capability() >= (8, 9):
        record("gemm TFLOP/s float8_e4m3fn", _fp8_rates(given, shapes[:1] if given.tiny else shapes))


def tests(given: StepContext, record: Record) -> None:
    """The tests marked ``cuda``; on the CPU they are collected and skipped."""
    report = given.scratch / "tests.xml"
    # The versions here may warn of things that the project's own do not; a warning is no error of the GPU.
    command = [sys.executable, "-m", "pytest", "-v", "-m", "cuda", "--import-mode=importlib", "-p", "no:cacheprovider",
               "-o", "addopts=", "-o", "filterwarnings=default", "--junitxml", str(report), "--maxfail=20",
               *(TESTS[:1] if given.tiny else TESTS)]  # fmt: skip
    lines: list[str] = []
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            lines.append(line)
            if "FAILED" in line or "ERROR" in line or len(lines) % 10 == 0:  # so that a killed run says how far it was
                record("so far", line.strip())
    record("output", "".join(lines)[-6000:])
    suite = next(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    record("counts", counts)
    for case in suite.iter("testcase"):
        for problem in (*case.iter("failure"), *case.iter("error")):
            record(f"failed: {case.get('name')}", (problem.text or problem.get("message") or "")[-1500:])
    if counts["failures"] or counts["errors"]:
        raise AssertionError(f"{counts['failures'] + counts['errors']} of {counts['tests']} tests failed")


def served(given: StepContext, record: Record) -> None:
    """What a server would run: ``auto`` must be bf16 on a GPU, within its tolerance on the golden rows."""
    checkpoint, tokenizer_ids = usual_checkpoint(given)
    began = time.perf_counter()
    predictor = Predictor.load(checkpoint.path, given.device)
    record("load s", round(time.perf_counter() - began, 2))
    record("precision", predictor.precision)
    record("tolerance", TOLERANCE[predictor.precision])
    record("refused precision", predictor.refused_precision)
    forward = predictor._engine.forward
    if isinstance(forward, CUDAForward):
        record("attention", getattr(forward.attention, "__name__", "?"))
        record("fused gelu", forward.fuses_gelu)
        record("residual and norm", forward.norms.name)
        record("graphs", len(forward.graphs.shapes) if forward.graphs else 0)
        record("head in the graphs", forward.has_built_in_head)
    record("largest distance of a golden score", predictor.check_golden())
    began = time.perf_counter()
    record("warm-up tokens", predictor.warm_up())
    record("warm-up s", round(time.perf_counter() - began, 2))
    record("alone and in a batch", _same_bits(predictor._engine, tokenizer_ids[: 8 if given.tiny else 256]))
    if given.device == "cuda":
        record("memory GiB", round(torch.cuda.max_memory_allocated() / 2**30, 2))
    # The benchmarks' weights, twice as large as GPT-2's own, in which an error of a layer shows; bf16 may miss its
    # tolerance on them.
    hard, _ = usual_checkpoint(given, WEIGHT_STD)
    fastest = Predictor(hard, given.device, fastest_precision(torch.device(given.device)))
    golden = hard.golden()
    scores = fastest.score(fastest.encode([row.text for row in golden], are_rendered=True))
    expected = np.array([row.scores for row in golden], dtype=np.float32)
    record("largest distance, large weights", float(distances(scores, expected, hard.schema).max()))
    if given.device == "cuda" and predictor.precision != "bf16":
        raise AssertionError(f"auto serves {predictor.precision}, not bf16")


def speed(given: StepContext, record: Record) -> None:
    """The engine by packed tokens, in the texts' mix of lengths: device, wall and host time, and share of the peak."""
    checkpoint, token_ids = usual_checkpoint(given)
    engine = Engine(checkpoint, given.device, fastest_precision(torch.device(given.device)))
    flops = linear_flops(checkpoint.body)
    peak = max(given.earlier.get("facts", {}).get("gemm TFLOP/s bfloat16", {"": math.nan}).values())
    counts = [count for count in TOKENS if count <= 256] if given.tiny else TOKENS
    batches = {f"{tokens} tokens": cut(token_ids, tokens) for tokens in counts}
    starts = dict.fromkeys(tuple(ids[:3]) for ids in token_ids if len(ids) > 3)  # equal texts are computed once
    batches["64 texts of 3"] = [list(ids) for ids in starts][: 4 if given.tiny else 64]
    batches["2048 texts"] = token_ids[: 4 if given.tiny else 2048]
    for name, batch in batches.items():
        tokens = sum(map(len, batch))
        repeats = 3 if given.tiny or tokens > 100_000 else 30
        wall_ms = median_ms(partial(engine.logits, batch), repeats)
        measured: dict[str, Any] = {
            "tokens": tokens,
            "texts": len(batch),
            "wall_ms": round(wall_ms, 3),
            "tok_s": round(1000 * tokens / wall_ms),
            "fraction of the peak by the wall": round(tokens * flops / wall_ms / 1e9 / peak, 3),
        }
        forward = engine.forward
        if isinstance(forward, CUDAForward):
            arrays = checked(batch, checkpoint.body)
            (micro_batch, *more) = micro_batches(arrays, engine.token_budget, forward.enough_tokens)
            if not more:
                ms = device_ms(given.device, partial(forward.logits, micro_batch), repeats)
                measured["device_ms"] = round(ms, 3)
                measured["fraction of the peak on the device"] = round(tokens * flops / ms / 1e9 / peak, 3)
                shape = PackedShape.of(micro_batch)
                measured["pack_ms"] = round(median_ms(partial(pack, micro_batch, shape, pinned=True), 20), 3)
                recorded = forward.graphs.shape_for(micro_batch) if forward.graphs else None
                measured["graph"] = None if recorded is None else list(recorded)
        measured["check_ms"] = round(median_ms(partial(checked, batch, checkpoint.body), 5), 3)
        record(name, measured)


def variants(given: StepContext, record: Record) -> None:
    """What graphs, the fused norm and tiles save: times with and without them, in turns, and how far logits differ."""
    checkpoint, token_ids = usual_checkpoint(given)
    forward = CUDAForward(checkpoint, given.device, fastest_precision(torch.device(given.device)))
    used = {"graphs": forward.graphs, "norms": forward.norms, "attention": forward.attention}
    record("residual and norm", forward.norms.name)
    record("attention", getattr(forward.attention, "__name__", "?"))
    changes: dict[str, dict[str, Any]] = {
        "as served": {},
        "no graph": {"graphs": None},
        "no graph, norm by PyTorch": {"graphs": None, "norms": TORCH_NORMS},
        "no graph, no tiles": {"graphs": None, "attention": getattr(forward.attention, "long", forward.attention)},
    }
    for tokens in (16, 64) if given.tiny else (16, 256, 1024, 4096, 8192, 16384):
        arrays = checked(cut(token_ids, tokens), checkpoint.body)
        batch, *_ = micro_batches(arrays, forward.token_budget, forward.enough_tokens)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in changes}
        logits = {}
        for name in (*changes, *reversed(changes), *changes):
            for attribute, value in (used | changes[name]).items():
                setattr(forward, attribute, value)
            compute, repeats = partial(forward.logits, batch), 2 if given.tiny else 20
            wall_ms = median_ms(lambda compute=compute: compute().cpu(), repeats)  # type: ignore[misc]
            times[name].append((device_ms(given.device, compute, repeats), wall_ms))
            logits[name] = compute().cpu()
        measured: dict[str, Any] = {}
        for name, pairs in times.items():
            device, wall = (round(statistics.median(values), 3) for values in zip(*pairs, strict=True))
            difference = float((logits[name] - logits["as served"]).abs().max())
            measured[name] = {"device_ms": device, "wall_ms": wall, "largest difference of a logit": difference}
        record(f"{tokens} tokens", measured)


def profile(given: StepContext, record: Record) -> None:
    """The kernels of one large micro-batch, and of one short text launched kernel by kernel."""
    checkpoint, token_ids = usual_checkpoint(given)
    engine = Engine(checkpoint, given.device, fastest_precision(torch.device(given.device)))
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, activity.CUDA] if given.device == "cuda" else [activity.CPU]
    for name, batch in {
        "16384 tokens": cut(token_ids, 64 if given.tiny else 16384),
        "16 tokens": cut(token_ids, 16),
    }.items():
        engine.logits(batch)
        with torch.profiler.profile(activities=activities) as profiler:
            engine.logits(batch)
        field = "self_device_time_total" if given.device == "cuda" else "self_cpu_time_total"
        rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, field))
        record(
            name,
            [{"name": row.key[:120], "calls": row.count, "us": round(getattr(row, field), 1)} for row in rows[:15]],
        )
        record(f"{name}, total us", round(sum(getattr(row, field) for row in rows), 1))


def training(given: StepContext, record: Record) -> None:
    """Steps of AdamW in bf16 with dropout: time, launches, and the share of the peak; the loss must fall."""
    checkpoint, token_ids = usual_checkpoint(given)
    peak = max(given.earlier.get("facts", {}).get("gemm TFLOP/s bfloat16", {"": math.nan}).values())
    on_gpu = given.device == "cuda"
    for length, rows in ((16, 4),) if given.tiny else ((128, 64), (512, 64)):
        torch.manual_seed(0)
        model: Any = build_model(_gpt2_config(checkpoint), checkpoint.spec, checkpoint.schema)
        model.to(given.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=on_gpu)
        generator = np.random.default_rng(0)
        batches = []
        for _ in range(2):
            drawn = generator.permutation(len(token_ids))[:rows]
            labels = _labels(generator, rows)
            batches.append(
                collate([{"input_ids": token_ids[i][:length], "labels": labels[n]} for n, i in enumerate(drawn)])
            )
        losses: list[torch.Tensor] = []

        def step(batch: dict[str, torch.Tensor], model: Any = model, optimizer: Any = optimizer) -> torch.Tensor:
            moved = {name: tensor.to(given.device, non_blocking=True) for name, tensor in batch.items()}
            with torch.autocast(given.device, dtype=torch.bfloat16):
                loss: torch.Tensor = model(**moved).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=on_gpu)
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        walls = []
        for batch in islice(cycle(batches), WARM_UP_STEPS + STEPS):
            began = time.perf_counter()
            losses.append(step(batch))
            _wait(given.device)
            walls.append(1000 * (time.perf_counter() - began))
        tokens = sum(len(batch["input_ids"]) for batch in batches) / len(batches)
        ms = statistics.median(walls[WARM_UP_STEPS:])
        measured = {
            "tokens": tokens,
            "step_ms": round(ms, 2),
            "tok_s": round(1000 * tokens / ms),
            # The final block's query, projection and MLP run on one token per text: this counts them for all.
            "fraction of the peak": round(3 * tokens * linear_flops(checkpoint.body) / ms / 1e9 / peak, 3),
            "losses": [round(float(loss), 4) for loss in losses],
        }
        if on_gpu:
            measured["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        record(f"max_length {length}, {rows} rows", measured)
        if not measured["losses"][-1] < measured["losses"][0]:
            raise AssertionError(f"the loss does not fall: {measured['losses']}")


def device_ms(device: str, call: Callable[[], object], repeats: int) -> float:
    """The median time of a call on the device, by CUDA events; on a CPU by the clock."""
    if device != "cuda":
        return median_ms(call, repeats)
    for _ in range(3):
        call()
    pairs = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return float(statistics.median(start.elapsed_time(end) for start, end in pairs))


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """The median time of a call by the clock, after two calls that are not counted."""
    median_s(call, 2)
    return 1000 * median_s(call, repeats)


def cut(token_ids: TokenIds, tokens: int) -> TokenIds:
    """The first texts, distinct and of exactly so many tokens in all; the last one is cut."""
    batch, left = [], tokens
    for ids in token_ids:
        if left <= 0:
            break
        batch.append(ids[:left])
        left -= len(batch[-1])
    if left > 0:
        raise ValueError(f"the texts have {tokens - left} tokens, not {tokens}")
    return batch


def corpus(given: StepContext) -> tuple[list[str], Tokenizer, TokenIds]:
    """Distinct texts in a fixed random order, a tokenizer trained on them, and their token ids."""
    lines = [text for path in given.texts for text in read_texts(path)] or made_up_texts()
    texts = list(dict.fromkeys(lines))
    drawn = np.random.default_rng(0).permutation(len(texts))[: 200 if given.tiny else CORPUS_TEXTS]
    texts = [texts[i] for i in drawn]
    tokenizer = train_tokenizer(texts, 500 if given.tiny else TOKENIZER_VOCAB_SIZE)
    return texts, tokenizer, [list(text.token_ids) for text in encode(texts, tokenizer, MAX_LENGTH)]


def made_up_texts(count: int = 6000) -> list[str]:
    """Texts whose lengths spread like those of the Debian texts: log-normal, in the median 65 words."""
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(generator.choice(letters, generator.integers(2, 10))) for _ in range(20_000)]
    lengths = np.exp(generator.normal(math.log(65), 0.7, count)).astype(int).clip(3, 600)
    places = [generator.zipf(1.3, length) % len(words) for length in lengths]
    return [" ".join(words[place] for place in row) for row in places]


def usual_checkpoint(given: StepContext, weight_std: float = 0.02) -> tuple[Checkpoint, TokenIds]:
    """The model of GPT-2 small's shape with random weights, which the first step that needs it makes; and texts."""
    texts, tokenizer, token_ids = corpus(given)
    path = given.scratch / f"checkpoint-{weight_std}"
    if not (path / "config.json").is_file():
        layers, channels = (2, 64) if given.tiny else (12, 768)
        vocabulary = 600 if given.tiny else 50257
        random_checkpoint(
            path, "base", layers, channels, tokenizer, texts, vocabulary=vocabulary, weight_std=weight_std
        )
    return read_checkpoint(path), token_ids


def _gpt2_config(checkpoint: Checkpoint) -> Any:
    from transformers import GPT2Config

    return GPT2Config(**checkpoint.config)


def _labels(generator: np.random.Generator, rows: int) -> list[list[float]]:
    """Labels of `benchmarks.workload.SCHEMA`: two of the single-label heads, and one bit per tag."""
    singles = [generator.integers(0, head.width, (rows, 1)) for head in SCHEMA if head.kind == HeadKind.SINGLE_LABEL]
    tags = [generator.integers(0, 2, (rows, head.width)) for head in SCHEMA if head.kind == HeadKind.MULTI_LABEL]
    columns: list[list[float]] = np.concatenate([*singles, *tags], axis=1).astype(float).tolist()
    return columns


def _same_bits(engine: Engine, token_ids: TokenIds) -> dict[str, Any]:
    """In how many texts the logits are the same bits alone and in one batch, and the largest difference."""
    together = engine.logits(token_ids)
    alone = np.concatenate([engine.logits([ids]) for ids in token_ids])
    same = int((together == alone).all(axis=1).sum())
    return {"texts": len(token_ids), "same bits": same, "largest difference": float(np.abs(together - alone).max())}


def _random(rows: int, columns: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, columns, device=device).to(dtype)


def _fp8_rates(given: StepContext, shapes: Sequence[tuple[int, int, int]]) -> dict[str, float] | str:
    """Products with a scale per row and per column, as fp8 would need them (docs/decisions/0007-engine.md)."""
    rates = {}
    try:
        for rows, inner, columns in shapes:
            left, right = (_random(side, inner, given.device, torch.float8_e4m3fn) for side in (rows, columns))
            multiply = partial(
                torch._scaled_mm, left, right.t(),
                torch.ones(rows, 1, device=given.device), torch.ones(1, columns, device=given.device),
                bias=_random(1, columns, given.device, torch.bfloat16)[0], out_dtype=torch.bfloat16,
            )  # fmt: skip
            ms = device_ms(given.device, multiply, 3 if given.tiny else 20)
            rates[f"{rows}x{inner}x{columns}"] = round(2 * rows * inner * columns / ms / 1e9, 6)  # slow on a CPU
    except Exception as error:  # the function is private: other versions and GPUs may not have it in this form
        return str(error)
    return rates


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def has_libpython() -> bool:
    """Whether the shared library of this Python is there, which Triton's Python backend needs."""
    from polyhead_serving.triton import LIBPYTHON, can_load

    return can_load(LIBPYTHON, {}) or any(Path(sys.base_prefix, "lib").glob(LIBPYTHON))
