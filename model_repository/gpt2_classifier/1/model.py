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
from polyhead.machine import usable_cores
from polyhead.predictor import Predictor
from polyhead_serving.model_metrics import BatchRecord, Metrics

CHECKPOINT = "checkpoint"
# A response of its own costs half a millisecond: it leaves before the rest of its batch only if that takes much longer
# (docs/decisions/0008-response-sender.md).
LONG_REST_S = 0.1
PROVEN_TOKENS = 512  # of golden.jsonl, at each load: half a second of a GPT-2 small on two slow cores
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


class Responses:
    """One response a request, exactly once: early through its sender, or with the others when `execute` returns.

    A request without a response hangs its client, one with two kills the server.
    """

    def __init__(self, requests: Sequence[Any]) -> None:
        self.requests = requests
        self._ready: dict[int, Any] = {}
        self._sent: set[int] = set()

    def put(self, position: int, response: Any) -> None:
        """Keeps the response to the request at this position."""
        self._ready[position] = response

    def send_ready(self) -> None:
        """Sends what is ready without waiting for the rest of the batch."""
        while self._ready:
            position, response = self._ready.popitem()
            self._sent.add(position)  # before it is tried: a sender that failed takes no second response
            try:
                sender = self.requests[position].get_response_sender()
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as error:
                log_error(f"a response could not be sent: {error!r}")

    def rest(self) -> list[Any]:
        """What `execute` returns: None for a response that was sent, an error for one that is missing."""
        internal = pb_utils.TritonError.INTERNAL
        return [
            None
            if position in self._sent
            else self._ready.get(position) or failure("internal error, see the server's log", internal)
            for position in range(len(self.requests))
        ]


class TritonPythonModel:
    """One instance of the model; Triton calls `execute` with one batch of requests at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the checkpoint beside this file and proves with real inferences that it answers, and rightly."""
        threads = threads_of(os.environ.get("POLYHEAD_THREADS"), json.loads(args["model_config"]))
        torch.set_num_threads(threads)
        folder = Path(args["model_repository"]) / args["model_version"] / CHECKPOINT
        try:
            self.predictor = Predictor.load(folder, device=device_of(args))
            proven = self.predictor.warm_up()
            self.smoke()
            if self.predictor.precision == "fp32":  # below, `load` has asked more of them
                self.predictor.check_golden(PROVEN_TOKENS)
        except PolyheadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.warn_of_other_labels(Path(args["model_repository"]) / "labels.txt")
        self.long_rest_s = LONG_REST_S
        # To ask takes some 40 microseconds a request: next to nothing beside a text on the CPU, not on a GPU.
        self.asks_for_cancels = self.predictor.device.type == "cpu"
        engine = {"precision": self.predictor.precision, "device": str(self.predictor.device)}
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.metrics = Metrics(pb_utils.MetricFamily, labels, engine, pb_utils.Logger.log_error)
        pb_utils.Logger.log_info(
            f"{args['model_name']} version {args['model_version']}: {engine['precision']} on {engine['device']}, "
            f"{threads} threads, token budget {self.predictor.token_budget}, a micro-batch of {proven} tokens fits"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request.

        No exception leaves: it would show its file and line to all callers, and after an early response end the server.
        """
        responses = Responses(requests)
        try:
            self.answer(requests, responses)
        except Exception as error:
            log_error(f"a batch of {len(requests)} requests failed: {error!r}\n{traceback.format_exc()}")
        return responses.rest()

    def finalize(self) -> None:
        """This instance no longer counts as serving."""
        self.metrics.close()

    def answer(self, requests: Sequence[Any], responses: Responses) -> None:
        """Tokenizes the texts of all requests together, then scores them part by part, short texts first.

        A request is answered as soon as its last text is scored: it does not wait for longer ones in the batch.
        """
        jobs: dict[int, Job] = {}
        rows: dict[int, range] = {}
        texts: list[bytes] = []
        for position, request in enumerate(requests):
            try:
                job = jobs[position] = read(request)
            except (BadRequestError, OptionError) as error:
                responses.put(position, failure(str(error), pb_utils.TritonError.INVALID_ARG))
                continue
            rows[position] = range(len(texts), len(texts) + len(job.texts) * job.needs_tokens)
            texts += job.texts if job.needs_tokens else []
        batch = BatchRecord(texts=len(texts))
        with batch.stage("tokenize"):
            encoded = self.predictor.encode(texts)
        batch.count(encoded)

        scores = np.full((len(texts), self.predictor.schema.width), np.nan, dtype=np.float32)
        unscored = {position: len(rows[position]) for position, job in jobs.items() if job.needs_scores}
        for position in jobs.keys() - unscored.keys():
            responses.put(position, self.respond(jobs[position], [encoded[row] for row in rows[position]], None))
        owners = {row: position for position in unscored for row in rows[position]}
        wanted = list(owners)
        parts = self.predictor.parts([encoded[row] for row in wanted])
        tokens = [sum(encoded[wanted[place]].token_count for place in part) for part in parts]
        for number, part in enumerate(parts):
            computed = sum(tokens[:number])
            if computed and batch.stages["compute"] / computed * sum(tokens[number:]) > self.long_rest_s:
                responses.send_ready()
            part_rows = [wanted[place] for place in part]
            for position in {owners[row] for row in part_rows} & unscored.keys():
                if self.is_dropped(requests[position]):
                    del unscored[position]
                    batch.cancelled_requests += 1
                    responses.put(position, failure("cancelled by the client", pb_utils.TritonError.CANCELLED))
            part_rows = [row for row in part_rows if owners[row] in unscored]
            with batch.stage("compute"):
                scores[part_rows] = self.predictor.score([encoded[row] for row in part_rows])
            with batch.stage("decode"):
                for row in part_rows:
                    position = owners[row]
                    unscored[position] -= 1
                    if not unscored[position]:
                        mine = slice(rows[position].start, rows[position].stop)
                        responses.put(position, self.respond(jobs[position], encoded[mine], scores[mine]))
            if number + 1 < len(parts):
                self.metrics.record(BatchRecord(parts=1))  # at once: the canary must not take a long batch for a hang
            else:
                batch.parts = 1
        self.metrics.record(batch)

    def is_dropped(self, request: Any) -> bool:
        """Whether the client has cancelled, which only gRPC can say."""
        return self.asks_for_cancels and request.is_cancelled()

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


def threads_of(threads: str | None, model_config: dict[str, Any]) -> int:
    """Threads for torch: POLYHEAD_THREADS, or this instance's share of the cores that the process may use."""
    if threads is None:
        groups = model_config.get("instance_group", [])
        instances = sum(group["count"] for group in groups if group["kind"] != "KIND_GPU")
        return max(1, usable_cores() // max(1, instances))
    if not (threads.isascii() and threads.isdigit() and int(threads) >= 1):
        raise pb_utils.TritonModelException(f"POLYHEAD_THREADS must be a whole number >= 1, got {threads!r}")
    return int(threads)


def log_error(message: str) -> None:
    """Logs in the one encoding that the model process is sure to have."""
    pb_utils.Logger.log_error(message.encode("ascii", "backslashreplace").decode("ascii"))
