"""Triton's adapter: reads the requests of a batch, lets the Predictor answer their texts, builds the responses.

The model process has ASCII as its encoding: open files as UTF-8, never print, log through pb_utils.Logger.
"""

from __future__ import annotations

import json
import os

# Before torch loads OpenMP, whose idle threads would keep the cores busy that Triton's batcher needs
# (docs/decisions/0004-passive-threads.md).
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
from polyhead_serving.model_metrics import BatchRecord, ModelMetrics

# Sending a response early costs half a millisecond, so it is done only if the rest of the batch takes longer than this
# (docs/decisions/0008-response-sender.md).
EARLY_RESPONSE_S = 0.1
PROVEN_TOKENS = 512  # of golden.jsonl, at each load: half a second for a GPT-2 small on two slow cores
SMOKE_TEXTS = [b"A first text that proves the model.", b"short"]


class BadRequestError(Exception):
    """The request is wrong as a whole, not one of its texts. It alone gets INVALID_ARG with this message."""


@dataclass(frozen=True)
class ParsedRequest:
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
    """Exactly one response per request: sent early, or returned with the others when `execute` ends.

    A request without a response hangs its client. A request with two responses kills the server.
    """

    def __init__(self, requests: Sequence[Any]) -> None:
        self.requests = requests
        self._ready: dict[int, Any] = {}
        self._sent: set[int] = set()

    def put(self, position: int, response: Any) -> None:
        """Keeps the response to the request at this position."""
        self._ready[position] = response

    def send_ready(self) -> None:
        """Sends the responses that are ready, before the rest of the batch is computed."""
        while self._ready:
            position, response = self._ready.popitem()
            self._sent.add(position)  # before sending: after a failed send, no second response is allowed
            try:
                sender = self.requests[position].get_response_sender()
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as error:
                log_error(f"a response could not be sent: {error!r}")

    def rest(self) -> list[Any]:
        """What `execute` returns: per request a response, or None if it was sent. A missing response is an error."""
        positions = range(len(self.requests))
        for position in set(positions) - self._ready.keys() - self._sent:
            self.put(position, failure("internal error, see the server's log", pb_utils.TritonError.INTERNAL))
        return [None if position in self._sent else self._ready[position] for position in positions]


class TritonPythonModel:
    """One instance of the model. Triton calls `execute` with one batch of requests at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the checkpoint beside this file and proves with real inferences that its answers are right."""
        threads = threads_of(os.environ.get("POLYHEAD_THREADS"), json.loads(args["model_config"]))
        torch.set_num_threads(threads)
        folder = Path(args["model_repository"]) / args["model_version"] / "checkpoint"
        try:
            self.predictor = Predictor.load(folder, device=device_of(args))
            proven = self.predictor.warm_up()
            self.smoke()
            if self.predictor.precision == "fp32":  # for other precisions, `load` has checked more of them
                self.predictor.check_golden(PROVEN_TOKENS)
        except PolyheadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.warn_of_other_labels(Path(args["model_repository"]) / "labels.txt")
        self.early_response_s = EARLY_RESPONSE_S
        # Asking takes 40 microseconds per request: nothing compared with a text on a CPU, but much on a GPU.
        self.asks_for_cancels = self.predictor.device.type == "cpu"
        engine = {"precision": self.predictor.precision, "device": str(self.predictor.device)}
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.metrics = ModelMetrics(pb_utils.MetricFamily, labels, engine, pb_utils.Logger.log_error)
        pb_utils.Logger.log_info(
            f"{args['model_name']} version {args['model_version']}: {engine['precision']} on {engine['device']}, "
            f"{threads} threads, token budget {self.predictor.token_budget}, a micro-batch of {proven} tokens fits"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request and never raises: after an early response, an exception would end the server."""
        responses = Responses(requests)
        try:
            self.answer(requests, responses)
        except Exception as error:
            log_error(f"a batch of {len(requests)} requests failed: {error!r}\n{traceback.format_exc()}")
        return responses.rest()

    def finalize(self) -> None:
        """Takes this instance out of the metrics."""
        self.metrics.close()

    def answer(self, requests: Sequence[Any], responses: Responses) -> None:
        """Tokenizes the texts of all requests together, then scores them part by part, short texts first.

        A request is answered as soon as its last text is scored. It does not wait for longer texts in the batch.
        """
        parsed: dict[int, ParsedRequest] = {}
        rows: dict[int, range] = {}
        texts: list[bytes] = []
        for position, request in enumerate(requests):
            try:
                wanted = parsed[position] = parse_request(request)
            except (BadRequestError, OptionError) as error:
                responses.put(position, failure(str(error), pb_utils.TritonError.INVALID_ARG))
                continue
            rows[position] = range(len(texts), len(texts) + len(wanted.texts) * wanted.needs_tokens)
            texts += wanted.texts if wanted.needs_tokens else []
        batch = BatchRecord(texts=len(texts))
        with batch.stage("tokenize"):
            encoded = self.predictor.encode(texts)
        batch.count(encoded)

        scores = np.full((len(texts), self.predictor.schema.width), np.nan, dtype=np.float32)
        unscored = {position: len(rows[position]) for position, wanted in parsed.items() if wanted.needs_scores}
        for position in parsed.keys() - unscored.keys():
            responses.put(position, self.respond(parsed[position], [encoded[row] for row in rows[position]], None))
        owners = {row: position for position in unscored for row in rows[position]}
        to_score = list(owners)
        parts = self.predictor.parts([encoded[row] for row in to_score])
        tokens = [sum(encoded[to_score[place]].token_count for place in part) for part in parts]
        for number, part in enumerate(parts):
            computed = sum(tokens[:number])
            if computed and batch.stages["compute"] / computed * sum(tokens[number:]) > self.early_response_s:
                responses.send_ready()
            part_rows = [to_score[place] for place in part]
            for position in {owners[row] for row in part_rows} & unscored.keys():
                if self.is_cancelled(requests[position]):
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
                        own = slice(rows[position].start, rows[position].stop)
                        responses.put(position, self.respond(parsed[position], encoded[own], scores[own]))
            if number + 1 < len(parts):
                self.metrics.record(BatchRecord(parts=1))  # now: the canary must not take a long batch for a hang
            else:
                batch.parts = 1
        self.metrics.record(batch)

    def is_cancelled(self, request: Any) -> bool:
        """Whether the client has cancelled the request, which is possible over gRPC only."""
        return self.asks_for_cancels and request.is_cancelled()

    def respond(self, request: ParsedRequest, encoded: Sequence[Any], scores: np.ndarray | None) -> Any:
        """Builds the outputs that the request asked for, and no others."""
        tensors = []
        if "PREDICTION" in request.outputs:
            answers = self.predictor.decode(encoded, scores, request.options)
            tensors.append(bytes_tensor("PREDICTION", [dump(answer) for answer in answers]))
        if "SCORES" in request.outputs:
            tensors.append(pb_utils.Tensor("SCORES", np.ascontiguousarray(scores, dtype=np.float32)))
        if "TOKEN_COUNT" in request.outputs:
            counts = [0 if text.error else len(text.token_ids) for text in encoded]
            tensors.append(pb_utils.Tensor("TOKEN_COUNT", np.array(counts, dtype=np.int32).reshape(-1, 1)))
        if "SCHEMA" in request.outputs:
            tensors.append(bytes_tensor("SCHEMA", [self.predictor.schema_json()] * len(request.texts)))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def smoke(self) -> None:
        """Answers two texts. If `initialize` passes, this version replaces the good one, so it must really answer."""
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
        """Triton's classification extension names columns after labels.txt, which all versions share."""
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.is_file() else []
        if lines != self.predictor.schema.column_names():
            pb_utils.Logger.log_warn("labels.txt does not match this version's heads; export it again")


def parse_request(request: Any) -> ParsedRequest:
    """Reads a request and checks what Triton does not.

    Raises:
        BadRequestError, OptionError: the request is wrong as a whole.
    """
    try:
        parameters = json.loads(request.parameters() or "{}")
    except Exception as error:  # among others: not UTF-8
        raise BadRequestError("the request's parameters must be valid UTF-8") from error
    tensor = pb_utils.get_input_tensor_by_name(request, "TEXT")
    if tensor is None:
        raise BadRequestError("TEXT: this input is missing")
    try:
        array = tensor.as_numpy()
    except Exception as error:
        raise BadRequestError("TEXT: its bytes do not match its shape") from error
    if array.dtype != np.object_:
        raise BadRequestError(f"TEXT: must be BYTES, got {array.dtype}")
    if array.shape[1:] != (1,) or len(array) < 1:
        raise BadRequestError(f"TEXT: must have the shape [n, 1] with n >= 1, got {list(array.shape)}")
    options = DecodeOptions.from_parameters(parameters)
    return ParsedRequest(array[:, 0].tolist(), options, frozenset(request.requested_output_names()))


def failure(message: str, code: Any) -> Any:
    """The response to one request that cannot be answered."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def bytes_tensor(name: str, rows: Sequence[bytes]) -> Any:
    """A BYTES output ``[n, 1]``."""
    array = np.empty((len(rows), 1), dtype=np.object_)
    array[:, 0] = rows
    return pb_utils.Tensor(name, array)


def dump(answer: dict[str, Any]) -> bytes:
    """One answer as JSON; it may contain numpy's numbers."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def device_of(args: dict[str, str]) -> str:
    """The device that Triton chose. KIND_AUTO means a GPU if there is one; a torch without CUDA then uses the CPU."""
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
    """Logs in ASCII, the only encoding that the model process is sure to have."""
    pb_utils.Logger.log_error(message.encode("ascii", "backslashreplace").decode("ascii"))
