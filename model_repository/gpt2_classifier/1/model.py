"""Triton's adapter: requests of a batch → Predictor → responses. What answers a text lives in polyhead.

The model process has ASCII for its encoding: open files as UTF-8, never print, log through pb_utils.Logger.
"""

from __future__ import annotations

import json
import os

# Before torch loads OpenMP: its idle threads would spin on the cores that Triton's batcher needs to wake up in time
# (docs/decisions/0004-passive-threads.md: 14 against 109 texts/s for one user on two cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
import triton_python_backend_utils as pb_utils

from polyhead.decode import DecodeOptions
from polyhead.errors import OptionError, PolyheadError
from polyhead.predictor import Predictor

CHECKPOINT = "checkpoint"
SMOKE_TEXTS = [b"A first text that proves the model.", b"short"]


class BadRequestError(Exception):
    """The request, not one of its texts, is wrong: it alone gets INVALID_ARG with this message."""


@dataclass(frozen=True)
class Job:
    """What one request asks for."""

    texts: Sequence[bytes]
    options: DecodeOptions
    outputs: frozenset[str]

    @property
    def needs_tokens(self) -> bool:
        """Whether its texts must be tokenized."""
        return not self.outputs <= {"SCHEMA"}

    @property
    def needs_scores(self) -> bool:
        """Whether the model must run."""
        return not self.outputs <= {"SCHEMA", "TOKEN_COUNT"}


class TritonPythonModel:
    """One instance of the model; Triton calls `execute` with one batch of requests at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the checkpoint beside this file and proves with a real inference that it answers."""
        set_threads(os.environ.get("POLYHEAD_THREADS"))
        folder = Path(args["model_repository"]) / args["model_version"] / CHECKPOINT
        try:
            self.predictor = Predictor.load(folder, device=device_of(args))
            self.smoke()
        except PolyheadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.warn_of_other_labels(Path(args["model_repository"]) / "labels.txt")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request; no exception leaves, since it would show its file and line to all callers."""
        try:
            return self.answer(requests)
        except Exception as error:
            details = f"a batch of {len(requests)} requests failed: {error!r}\n{traceback.format_exc()}"
            pb_utils.Logger.log_error(details.encode("ascii", "backslashreplace").decode("ascii"))
            internal = pb_utils.TritonError.INTERNAL
            return [failure("internal error, see the server's log", internal) for _ in requests]

    def answer(self, requests: list[Any]) -> list[Any]:
        """Encodes and scores the texts of all requests together, then builds each request's own response."""
        responses: list[Any] = [None] * len(requests)
        jobs: dict[int, Job] = {}
        for position, request in enumerate(requests):
            try:
                jobs[position] = read(request)
            except (BadRequestError, OptionError) as error:
                responses[position] = failure(str(error), pb_utils.TritonError.INVALID_ARG)
        # Jobs that need scores come first, so that what is scored is one slice.
        order = sorted(jobs, key=lambda position: not jobs[position].needs_scores)
        texts = [text for p in order if jobs[p].needs_tokens for text in jobs[p].texts]
        encoded = self.predictor.encode(texts)
        scored = sum(len(job.texts) for job in jobs.values() if job.needs_scores)
        scores = self.predictor.score(encoded[:scored]) if scored else None  # (scored, width)
        start = 0
        for position in order:
            job = jobs[position]
            rows = slice(start, start + len(job.texts))
            job_scores = scores[rows] if job.needs_scores else None
            responses[position] = self.respond(job, encoded[rows], job_scores)
            start = rows.stop if job.needs_tokens else start
        return responses

    def respond(self, job: Job, encoded: Sequence[Any], scores: np.ndarray | None) -> Any:
        """Builds the outputs that the request asked for, and no others."""
        tensors = []
        if "PREDICTION" in job.outputs:
            answers = self.predictor.decode(encoded, scores, job.options)
            tensors.append(bytes_tensor("PREDICTION", [dump(answer) for answer in answers]))
        if "SCORES" in job.outputs:
            tensors.append(pb_utils.Tensor("SCORES", np.ascontiguousarray(scores, dtype=np.float32)))
        if "TOKEN_COUNT" in job.outputs:
            counts = [0 if text.error else len(text.token_ids) for text in encoded]
            tensors.append(pb_utils.Tensor("TOKEN_COUNT", np.array(counts, dtype=np.int32).reshape(-1, 1)))
        if "SCHEMA" in job.outputs:
            tensors.append(bytes_tensor("SCHEMA", [self.predictor.schema_json()] * len(job.texts)))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def smoke(self) -> None:
        """A version whose `initialize` passes replaces the good one: what cannot answer must not pass."""
        encoded = self.predictor.encode(SMOKE_TEXTS)
        scores = self.predictor.score(encoded)
        expected = (len(SMOKE_TEXTS), len(self.predictor.schema.column_names()))
        if scores.shape != expected or not np.isfinite(scores).all():
            raise pb_utils.TritonModelException(
                f"the checkpoint's scores must be finite and {expected}, got {scores.shape} with "
                f"{int((~np.isfinite(scores)).sum())} that are not finite"
            )
        for answer in self.predictor.decode(encoded, scores, DecodeOptions()):
            dump(answer)
        self.predictor.schema_json()

    def warn_of_other_labels(self, path: Path) -> None:
        """The classification extension names columns after labels.txt, which all versions share."""
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.is_file() else []
        if lines != self.predictor.schema.column_names():
            pb_utils.Logger.log_warn("labels.txt does not match this version's heads; export it again")


def read(request: Any) -> Job:
    """Reads a request and guards what Triton lets through.

    Raises:
        BadRequestError, OptionError: the request is wrong as a whole.
    """
    try:
        parameters = json.loads(request.parameters() or "{}")
    except Exception as error:  # not UTF-8, among others
        raise BadRequestError("the request's parameters must be valid UTF-8") from error
    tensor = pb_utils.get_input_tensor_by_name(request, "TEXT")
    if tensor is None:
        raise BadRequestError("TEXT: this input is missing")
    try:
        array = tensor.as_numpy()
    except Exception as error:
        raise BadRequestError("TEXT: its bytes are not the strings that its shape announces") from error
    if array.dtype != np.object_:
        raise BadRequestError(f"TEXT: must be BYTES, got {array.dtype}")
    if array.shape[1:] != (1,) or len(array) < 1:
        raise BadRequestError(f"TEXT: must have the shape [n, 1] with n >= 1, got {list(array.shape)}")
    options = DecodeOptions.from_parameters(parameters)
    return Job(array[:, 0].tolist(), options, frozenset(request.requested_output_names()))


def failure(message: str, code: Any) -> Any:
    """The response to one request that cannot be answered."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def bytes_tensor(name: str, rows: Sequence[bytes]) -> Any:
    """A BYTES output ``[n, 1]``."""
    array = np.empty((len(rows), 1), dtype=np.object_)
    array[:, 0] = rows
    return pb_utils.Tensor(name, array)


def dump(answer: dict[str, Any]) -> bytes:
    """JSON of one answer; numpy's numbers are allowed."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def device_of(args: dict[str, str]) -> str:
    """KIND_AUTO picks a GPU where Triton sees one; a torch without CUDA then still serves, from the CPU."""
    if args["model_instance_kind"] != "GPU":
        return "cpu"
    if not torch.cuda.is_available():
        pb_utils.Logger.log_warn("Triton sees a GPU but this torch has no CUDA: serving from the CPU")
        return "cpu"
    return f"cuda:{args['model_instance_device_id']}"


def set_threads(threads: str | None) -> None:
    """How many threads torch may use; all cores unless POLYHEAD_THREADS says otherwise."""
    if threads is None:
        return
    if not (threads.isascii() and threads.isdigit() and int(threads) >= 1):
        raise pb_utils.TritonModelException(f"POLYHEAD_THREADS must be a whole number >= 1, got {threads!r}")
    torch.set_num_threads(int(threads))
