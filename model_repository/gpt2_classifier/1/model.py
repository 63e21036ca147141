"""Triton's adapter: reads requests, lets the scheduler score their texts, and builds the responses.

The model process has ASCII as its encoding: open files as UTF-8, never print, log through pb_utils.Logger.
"""

from __future__ import annotations

import json
import os

# Before torch loads OpenMP: its idle threads would keep the cores busy that Triton's batcher needs
# (docs/decisions/0004-passive-threads.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gc
import logging
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
import triton_python_backend_utils as pb_utils

from polyhead.answer_counter import AnswerCounter
from polyhead.decode import DecodeOptions, are_answers
from polyhead.encode import EncodedText
from polyhead.errors import MachineError, OptionError, PolyheadError
from polyhead.identity import checkpoint_id
from polyhead.predictor import Predictor
from polyhead.scheduler import CancelledRequestError, ExpiredError, RefusedError, Scheduler
from polyhead.schema import NO_SCORE
from polyhead.text_queue import ScoreRequest
from polyhead_serving.answer_log import AnswerLog
from polyhead_serving.answer_metrics import AnswerMetrics
from polyhead_serving.canary import PROBE_ID
from polyhead_serving.instance_config import InstanceConfig
from polyhead_serving.model_metrics import InstanceState, ModelMetrics, RequestsRecord
from polyhead_serving.responses import Responses
from polyhead_serving.triton import DEVICE_VARIABLE

SENDERS = 4  # threads that send the responses which `execute` could not return (docs/decisions/0008-response-sender.md)
# With several instances, Triton gives the next requests to the one that is free. An instance that refuses at once would
# get all of them, so it waits this long first.
REFUSAL_PAUSE_S = 0.02
CANCEL_AFTER_S = 0.1  # only then is a request asked whether it is cancelled, which takes 40 microseconds
BACKLOG_S = 0.002  # Triton's next call comes this soon after the last one if its batcher has more requests
# The last is a word that must be cut, for which the tokenizer's vocabulary is read once.
SMOKE_TEXTS = [b"A first text that proves the model.", b"short", b"word" * 10_000]
NEED_NO_SCORES = frozenset({"SCHEMA", "TOKEN_COUNT"})
STALLED_S = 60.0  # no micro-batch takes this long


class BadRequestError(Exception):
    """The request is wrong as a whole, not one of its texts. It alone gets INVALID_ARG with this message."""


@dataclass(eq=False)
class ParsedRequest:
    """What one request asks for, and how far its answer is.

    Attributes:
        position: its place in the call of `execute`.
        source: Triton's request; None once there is a sender.
        timeout_s: how long its caller waits; None if the request does not say so.
        encoded: its texts, once they are tokenized.
        scoring: its texts in the queue, if they need scores.
        sender: sends its response if `execute` has returned without it.
        request_id: as its caller named it; empty if it has none.
    """

    position: int
    source: Any
    texts: Sequence[bytes]
    options: DecodeOptions
    outputs: frozenset[str]
    timeout_s: float | None
    arrived: float = field(default_factory=time.monotonic)
    encoded: list[EncodedText] = field(default_factory=list)
    scoring: ScoreRequest | None = None
    sender: Any = None
    request_id: str = ""

    def is_cancelled(self) -> bool:
        """Whether the client has cancelled it, which is possible over gRPC only."""
        source, sender = self.source, self.sender  # in this order: the source goes when the sender has come
        try:
            return bool((sender or source).is_cancelled())
        except Exception as error:  # this is called in the scheduler's thread, which must not die of it
            log_error(f"a request does not say whether it is cancelled: {error!r}")
            return False

    @property
    def needs_tokens(self) -> bool:
        """Whether its texts must be tokenized."""
        return not self.outputs <= {"SCHEMA"}

    @property
    def needs_scores(self) -> bool:
        """Whether the model must run."""
        return not self.outputs <= NEED_NO_SCORES


TritonResponses = Responses[ParsedRequest]


class TritonPythonModel:
    """One instance of the model. Triton never overlaps calls of `execute`; the scheduler computes in its own thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the checkpoint beside this file and proves with real inferences that its answers are right."""
        folder = Path(args["model_repository"]) / args["model_version"] / "checkpoint"
        try:
            self.config = InstanceConfig.read(json.loads(args["model_config"]))
            torch.set_num_threads(self.config.threads)
            self.predictor = Predictor.load(folder, device=device_of(args))
            proven = self.predictor.warm_up()
            for answer in self.predictor.predict(SMOKE_TEXTS):
                dump(answer)
        except PolyheadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.warn_of_other_labels(folder.with_name("labels.txt"))
        libraries = logging.getLogger("polyhead")
        libraries.addHandler(TritonLogHandler())
        libraries.propagate = False
        engine = {"precision": self.predictor.precision, "device": str(self.predictor.device)}
        labels = {"model": args["model_name"], "version": args["model_version"]}
        has_fallen_back = self.predictor.refused_precision is not None
        self.metrics = ModelMetrics(pb_utils.MetricFamily, labels, engine, self.state, log_error, has_fallen_back)
        expected = self.predictor.checkpoint.distribution
        counter = AnswerCounter.of(self.predictor.schema, expected)
        self.answers = AnswerMetrics(pb_utils.MetricFamily, labels, counter, expected, log_error)
        self.scheduler = Scheduler(
            self.predictor,
            self.config.limits,
            self.metrics.record_micro_batch,
            end_process,
            CANCEL_AFTER_S,
        )
        self.answer_log = self.open_answer_log(folder, labels)
        self.returned = 0.0  # when `execute` last returned; time.monotonic seconds
        self.senders = ThreadPoolExecutor(SENDERS, "polyhead-sender")
        self.scheduler.start()
        gc.collect()
        gc.freeze()  # what is loaded now stays, so later collections need not look at it
        pb_utils.Logger.log_info(
            f"{args['model_name']} version {args['model_version']}: {engine['precision']} on {engine['device']}, "
            f"{self.config.threads} threads, token budget {self.predictor.token_budget}, "
            f"a micro-batch of {proven} tokens fits"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Queues every request, and returns the answers that are there soon. Never raises."""
        began = time.monotonic()
        record = RequestsRecord()
        responses = TritonResponses(len(requests), partial(self.respond, record=record), self.send, fail)
        try:
            self.accept(requests, responses, record)
        except Exception as error:
            responses.fail_rest(f"a call with {len(requests)} requests failed: {error!r}\n{traceback.format_exc()}")
        if record.refused and self.config.instances > 1:
            time.sleep(REFUSAL_PAUSE_S)
        returned = responses.collect(self.patience_s(max(len(requests), record.texts), began))
        self.metrics.record_requests(record)
        self.returned = time.monotonic()
        return returned

    def patience_s(self, texts: int, began: float) -> float:
        """How long `execute` waits for the answers of a call with so many texts that began at this time."""
        # If Triton calls again at once, with as many texts as it may, more are waiting there. Only the model's queue
        # knows how long. Callers that were just answered cannot be back so soon.
        if texts >= self.config.max_batch_size and began - self.returned < BACKLOG_S:
            return 0.0
        wait_s = self.scheduler.wait_s()
        return self.config.at_once_s if wait_s is None or wait_s <= self.config.at_once_s else 0.0

    def is_ready(self) -> bool:
        """Whether the engine gets on. Triton 26.03 and later ask this for the model's readiness; 2.51 never does."""
        return self.scheduler.computing_s() < STALLED_S

    def finalize(self) -> None:
        """Answers what was accepted, and takes this instance out of the metrics."""
        self.scheduler.close()
        self.senders.shutdown()
        if self.answer_log is not None:
            self.answer_log.close()
        self.metrics.close()
        self.answers.close()

    def accept(self, requests: Sequence[Any], responses: TritonResponses, record: RequestsRecord) -> None:
        """Reads the requests, tokenizes the texts of all together, and queues those that need scores."""
        parsed: list[ParsedRequest] = []
        for position, request in enumerate(requests):
            try:
                outputs = frozenset(request.requested_output_names())
                timeout_s = request.timeout() / 1e6 or None  # 0: the request has none
                if not outputs <= NEED_NO_SCORES:
                    self.scheduler.admit(timeout_s)  # before the request is read: under overload there are thousands
                parsed.append(parse_request(position, request, outputs, timeout_s))
            except RefusedError as error:
                self.refuse(position, error, responses, record)
            except (BadRequestError, OptionError) as error:
                responses.put(position, failure(str(error), pb_utils.TritonError.INVALID_ARG))
        self.tokenize([request for request in parsed if request.needs_tokens], record)
        for request in (request for request in parsed if not request.needs_scores):
            responses.put(request.position, self.respond(request, record))
        self.submit([request for request in parsed if request.needs_scores], responses, record)

    def refuse(self, position: int, error: RefusedError, responses: TritonResponses, record: RequestsRecord) -> None:
        """Answers a request that would wait too long."""
        record.refused[error.reason] += 1
        responses.put(position, failure(str(error), pb_utils.TritonError.UNAVAILABLE))

    def tokenize(self, requests: Sequence[ParsedRequest], record: RequestsRecord) -> None:
        """Tokenizes the texts of all requests together."""
        with record.stage("tokenize"):
            encoded = self.predictor.encode([text for request in requests for text in request.texts])
        record.count(encoded)
        rest = iter(encoded)
        for request in requests:
            request.encoded = list(islice(rest, len(request.texts)))

    def submit(self, requests: Sequence[ParsedRequest], responses: TritonResponses, record: RequestsRecord) -> None:
        """Queues requests for the scheduler, and answers those that would wait too long."""
        width = self.predictor.schema.width
        for request in requests:
            request.scoring = ScoreRequest(
                request.encoded,
                width,
                partial(responses.finish, request),
                request.timeout_s,
                request.is_cancelled,
                arrived=request.arrived,
            )
            responses.queued(request)
        try:
            refused = self.scheduler.submit([request.scoring for request in requests if request.scoring is not None])
        except Exception:
            for request in requests:
                responses.withdraw(request)
            raise
        for request in requests:
            if request.scoring in refused:
                responses.withdraw(request)
                self.refuse(request.position, refused[request.scoring], responses, record)
                request.scoring = None  # as in `build_response`

    def send(self, request: ParsedRequest) -> None:
        """Lets another thread send the response to a request that `execute` has returned without."""
        self.senders.submit(self.send_now, request)

    def send_now(self, request: ParsedRequest) -> None:
        """Sends the response to a request, once: after a failed send, no second response is allowed."""
        record = RequestsRecord()
        try:
            request.sender.send(self.respond(request, record), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:
            log_error(f"a response could not be sent: {error!r}")
        self.metrics.record_requests(record)

    def respond(self, request: ParsedRequest, record: RequestsRecord) -> Any:
        """The response to a request that is finished; never raises."""
        try:
            with record.stage("decode"):
                return self.build_response(request, record)
        except Exception as error:
            return fail(f"a response could not be built: {error!r}\n{traceback.format_exc()}")

    def build_response(self, request: ParsedRequest, record: RequestsRecord) -> Any:
        """Builds the outputs that the request asked for, and no others; or the error that it gets instead."""
        # Else the two would refer to each other, and keep Triton's memory until Python collects its garbage.
        scoring, request.scoring = request.scoring, None
        match scoring.failure if scoring is not None else None:
            case None:
                pass
            case ExpiredError() as error:
                return failure(str(error), pb_utils.TritonError.UNAVAILABLE)
            case CancelledRequestError() as error:
                return failure(str(error), pb_utils.TritonError.CANCELLED)
            case error:
                return failure(str(error), pb_utils.TritonError.INTERNAL)
        tensors = []
        if scoring is not None:
            scores = scoring.scores
            if request.request_id != PROBE_ID:
                self.answers.add(request.encoded, scores)
            have_answers = are_answers(scores)
            if not have_answers.all():
                readable = np.array([text.error is None for text in request.encoded])
                record.error_texts += int((readable & ~have_answers).sum())  # others were counted when they were read
                scores = np.where(have_answers[:, None], scores, np.float32(NO_SCORE))
            if self.answer_log is not None:
                self.answer_log.offer(request.texts, request.encoded, scores, request.options, request.request_id)
            if "PREDICTION" in request.outputs:
                answers = self.predictor.decode(request.encoded, scores, request.options)
                tensors.append(bytes_tensor("PREDICTION", [dump(answer) for answer in answers]))
            if "SCORES" in request.outputs:
                tensors.append(pb_utils.Tensor("SCORES", scores))
        if "TOKEN_COUNT" in request.outputs:
            counts = [[text.token_count] for text in request.encoded]
            tensors.append(pb_utils.Tensor("TOKEN_COUNT", np.array(counts, dtype=np.int32)))
        if "SCHEMA" in request.outputs:
            tensors.append(bytes_tensor("SCHEMA", [self.predictor.schema_json()]))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def open_answer_log(self, checkpoint: Path, labels: dict[str, str]) -> AnswerLog | None:
        """Starts the answer log, if config.pbtxt wants one."""
        if self.config.answer_log is None:
            return None
        described = {**labels, "checkpoint": checkpoint_id(checkpoint)}
        log = AnswerLog(self.config.answer_log, self.predictor, described, self.metrics.record_answer_log, log_error)
        log.start()
        return log

    def state(self) -> InstanceState:
        """How this instance stands, for the metrics."""
        return InstanceState(*self.scheduler.waiting(), self.predictor.computed_layers)

    def warn_of_other_labels(self, path: Path) -> None:
        """Triton's classification extension names columns after this version's labels.txt."""
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.is_file() else []
        if lines != self.predictor.schema.column_names():
            pb_utils.Logger.log_warn("labels.txt does not match this version's heads; export it again")


class TritonLogHandler(logging.Handler):
    """Passes what the libraries log to Triton's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Logs one record."""
        (log_error if record.levelno >= logging.ERROR else log_warning)(self.format(record))


def parse_request(position: int, request: Any, outputs: frozenset[str], timeout_s: float | None) -> ParsedRequest:
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
    texts = array[:, 0].tolist()
    return ParsedRequest(position, request, texts, options, outputs, timeout_s, request_id=read_id(request))


def read_id(request: Any) -> str:
    """The request's id; empty if it is not UTF-8."""
    try:
        return str(request.request_id())
    except Exception:
        return ""


def failure(message: str, code: Any) -> Any:
    """The response to one request that cannot be answered."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def fail(reason: str) -> Any:
    """Logs the reason, and builds the response that does not tell it."""
    log_error(reason)
    return failure("internal error, see the server's log", pb_utils.TritonError.INTERNAL)


def bytes_tensor(name: str, rows: Sequence[bytes]) -> Any:
    """A BYTES output ``[n, 1]``."""
    array = np.empty((len(rows), 1), dtype=np.object_)
    array[:, 0] = rows
    return pb_utils.Tensor(name, array)


def dump(answer: dict[str, Any]) -> bytes:
    """One answer as JSON; it may contain numpy's numbers."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def device_of(args: dict[str, str]) -> str:
    """The device that Triton chose. KIND_AUTO means a GPU if there is one; a torch without CUDA then uses the CPU.

    Raises:
        MachineError: that is the CPU, and polyhead-serve was told to use a GPU.
    """
    is_gpu = args["model_instance_kind"] == "GPU"
    if is_gpu and torch.cuda.is_available():
        return f"cuda:{args['model_instance_device_id']}"
    wrong = "Triton sees a GPU but this torch has no CUDA" if is_gpu else "Triton sees no GPU"
    if os.environ.get(DEVICE_VARIABLE) == "cuda":
        raise MachineError(f"--device cuda: {wrong}")
    if is_gpu:
        pb_utils.Logger.log_warn(f"{wrong}: serving from the CPU")
    return "cpu"


def end_process(error: BaseException) -> None:
    """Ends the model process, because nobody computes what is queued. The supervisor then restarts the server."""
    trace = "".join(traceback.format_exception(error))
    log_error(f"the scheduler failed, so this process ends: {error!r}\n{trace}")
    os._exit(1)


def log_error(message: str) -> None:
    """Logs in ASCII, the only encoding that the model process is sure to have."""
    pb_utils.Logger.log_error(message.encode("ascii", "backslashreplace").decode("ascii"))


def log_warning(message: str) -> None:
    """As `log_error`."""
    pb_utils.Logger.log_warn(message.encode("ascii", "backslashreplace").decode("ascii"))
