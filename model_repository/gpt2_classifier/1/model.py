"""Triton's adapter: reads the requests of a batch, lets the Predictor answer their texts, builds the responses.

The model process has ASCII as its encoding: open files as UTF-8, never print, log through pb_utils.Logger.
"""

from __future__ import annotations

import json
import os

# Before torch loads OpenMP: its idle threads would keep the cores busy that Triton's batcher needs
# (docs/decisions/0004-passive-threads.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
import triton_python_backend_utils as pb_utils

from polyhead.decode import DecodeOptions, Scores
from polyhead.encode import EncodedText
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


@dataclass(eq=False)
class ParsedRequest:
    """What one request asks for, and how far its answer is.

    Attributes:
        position: its place in the batch.
        source: Triton's request.
        encoded: its texts, once they are tokenized.
        scores: ``(texts, width)``; made when scoring begins.
        unscored: how many texts still wait for their scores; 0 if the request is answered or cancelled.
    """

    position: int
    source: Any
    texts: Sequence[bytes]
    options: DecodeOptions
    outputs: frozenset[str]
    encoded: list[EncodedText] = field(default_factory=list)
    scores: Scores = field(init=False)
    unscored: int = 0

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
        self._requests = requests
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
                sender = self._requests[position].get_response_sender()
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as error:
                log_error(f"a response could not be sent: {error!r}")

    def rest(self) -> list[Any]:
        """What `execute` returns: per request a response, or None if it was sent. A missing response is an error."""
        positions = range(len(self._requests))
        for position in set(positions) - self._ready.keys() - self._sent:
            self.put(position, failure("internal error, see the server's log", pb_utils.TritonError.INTERNAL))
        return [self._ready.get(position) for position in positions]


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
            if self.predictor.precision == "fp32":  # for other precisions, `load` has checked more of them
                self.predictor.check_golden(PROVEN_TOKENS)
            for answer in self.predictor.predict(SMOKE_TEXTS):
                dump(answer)
        except PolyheadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.warn_of_other_labels(Path(args["model_repository"]) / "labels.txt")
        # Asking takes 40 microseconds per request: nothing compared with a text on a CPU, but much on a GPU.
        self.asks_for_cancels = self.predictor.device.type == "cpu"
        engine = {"precision": self.predictor.precision, "device": str(self.predictor.device)}
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.metrics = ModelMetrics(pb_utils.MetricFamily, labels, engine, log_error)
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
        """Tokenizes the texts of all requests together, then scores them."""
        parsed: list[ParsedRequest] = []
        for position, request in enumerate(requests):
            try:
                parsed.append(parse_request(position, request))
            except (BadRequestError, OptionError) as error:
                responses.put(position, failure(str(error), pb_utils.TritonError.INVALID_ARG))
        batch = BatchRecord()
        self.tokenize([request for request in parsed if request.needs_tokens], batch)
        for done in (request for request in parsed if not request.needs_scores):
            responses.put(done.position, self.respond(done))
        self.score([request for request in parsed if request.needs_scores], responses, batch)
        self.metrics.record(batch)

    def tokenize(self, requests: Sequence[ParsedRequest], batch: BatchRecord) -> None:
        """Tokenizes the texts of all requests in one call."""
        with batch.stage("tokenize"):
            encoded = self.predictor.encode([text for request in requests for text in request.texts])
        batch.count(encoded)
        rest = iter(encoded)
        for request in requests:
            request.encoded = list(islice(rest, len(request.texts)))

    def score(self, requests: Sequence[ParsedRequest], responses: Responses, batch: BatchRecord) -> None:
        """Scores the texts of all requests part by part, short texts first.

        A request is answered as soon as its last text is scored. It does not wait for longer texts in the batch.
        """
        for request in requests:
            request.unscored = len(request.texts)
            request.scores = np.empty((len(request.texts), self.predictor.schema.width), dtype=np.float32)
        texts = [(request, row) for request in requests for row in range(len(request.texts))]
        plan = self.predictor.parts([request.encoded[row] for request, row in texts])
        parts = [[texts[place] for place in places] for places in plan]
        tokens = [sum(request.encoded[row].token_count for request, row in part) for part in parts]
        for number, part in enumerate(parts):
            computed = sum(tokens[:number])
            if computed and batch.stages["compute"] / computed * sum(tokens[number:]) > EARLY_RESPONSE_S:
                responses.send_ready()
            if self.asks_for_cancels:
                self.drop_cancelled({request for request, _ in part if request.unscored}, responses, batch)
            waiting = [(request, row) for request, row in part if request.unscored]
            with batch.stage("compute"):
                scores = self.predictor.score([request.encoded[row] for request, row in waiting])
            with batch.stage("decode"):
                for (request, row), text_scores in zip(waiting, scores, strict=True):
                    request.scores[row] = text_scores
                    request.unscored -= 1
                    if not request.unscored:
                        responses.put(request.position, self.respond(request))
            self.metrics.record(BatchRecord(parts=1))  # now: the canary must not take a long batch for a hang

    def drop_cancelled(self, requests: set[ParsedRequest], responses: Responses, batch: BatchRecord) -> None:
        """Ends the requests that their clients have cancelled, which is possible over gRPC only."""
        for request in requests:
            if request.source.is_cancelled():
                request.unscored = 0
                batch.cancelled_requests += 1
                responses.put(request.position, failure("cancelled by the client", pb_utils.TritonError.CANCELLED))

    def respond(self, request: ParsedRequest) -> Any:
        """Builds the outputs that the request asked for, and no others."""
        tensors = []
        if "PREDICTION" in request.outputs:
            answers = self.predictor.decode(request.encoded, request.scores, request.options)
            tensors.append(bytes_tensor("PREDICTION", [dump(answer) for answer in answers]))
        if "SCORES" in request.outputs:
            tensors.append(pb_utils.Tensor("SCORES", request.scores))
        if "TOKEN_COUNT" in request.outputs:
            counts = [[text.token_count] for text in request.encoded]
            tensors.append(pb_utils.Tensor("TOKEN_COUNT", np.array(counts, dtype=np.int32)))
        if "SCHEMA" in request.outputs:
            tensors.append(bytes_tensor("SCHEMA", [self.predictor.schema_json()] * len(request.texts)))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def warn_of_other_labels(self, path: Path) -> None:
        """Triton's classification extension names columns after labels.txt, which all versions share."""
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.is_file() else []
        if lines != self.predictor.schema.column_names():
            pb_utils.Logger.log_warn("labels.txt does not match this version's heads; export it again")


def parse_request(position: int, request: Any) -> ParsedRequest:
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
    return ParsedRequest(position, request, array[:, 0].tolist(), options, frozenset(request.requested_output_names()))


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
        instances: int = sum(group["count"] for group in groups if group["kind"] != "KIND_GPU")
        return max(1, usable_cores() // max(1, instances))
    if not (threads.isascii() and threads.isdigit() and int(threads) >= 1):
        raise pb_utils.TritonModelException(f"POLYHEAD_THREADS must be a whole number >= 1, got {threads!r}")
    return int(threads)


def log_error(message: str) -> None:
    """Logs in ASCII, the only encoding that the model process is sure to have."""
    pb_utils.Logger.log_error(message.encode("ascii", "backslashreplace").decode("ascii"))
