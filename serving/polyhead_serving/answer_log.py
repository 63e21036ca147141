"""The answer log: a sample of the texts and their answers as JSON lines (docs/answer_log.md). Off by default.

The answers never wait for it. Sampled answers go into a bounded queue, from which a thread writes them. What does not
fit is dropped and counted.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import orjson

from polyhead.decode import DecodeOptions, Scores, are_answers
from polyhead.encode import EncodedText
from polyhead.errors import OptionError
from polyhead.files import FULL
from polyhead.identity import text_hash
from polyhead.predictor import NOT_FINITE, Predictor
from polyhead.schema import Head, HeadKind
from polyhead.template import as_text, json_object
from polyhead_serving.canary import PROBE_ID
from polyhead_serving.rotated_files import RotatedFiles

KEY_VARIABLE = "POLYHEAD_ANSWER_LOG_KEY"
LEAST_KEY = 16  # characters
MEGABYTE = 2**20
DAY_S = 86_400.0
WRITE_EVERY_S = 0.25
MOST_WAITING = 4096  # answers
MOST_WAITING_BYTES = 32 * MEGABYTE
MOST_LABELS = 100  # of a head in an entry: those with the highest scores
MOST_ID = 200  # characters
TELL_EVERY_S = 60.0
DEFAULTS = {"answer_log_share": "0.01", "answer_log_texts": "plain", "answer_log_mb": "1024", "answer_log_days": "30"}
NAMES = ("answer_log", *DEFAULTS)  # of parameters in config.pbtxt

TextForm = Literal["plain", "hash", "none"]
Record = Callable[[Mapping[tuple[str, str], int]], None]


@dataclass(frozen=True)
class AnswerLogConfig:
    """What is logged, and where.

    Attributes:
        folder: of the files.
        share: of the texts.
        texts: whether an entry has the text, a hash of it, or neither.
        key: of the hash.
        most_bytes: of all files together.
        keep_s: files are removed after so long.
    """

    folder: Path
    share: float
    texts: TextForm
    key: bytes
    most_bytes: int
    keep_s: float

    @classmethod
    def read(cls, given: dict[str, str]) -> AnswerLogConfig | None:
        """Takes its parameters of config.pbtxt out of `given`; None: nothing is logged. The environment has the key.

        Raises:
            OptionError: a parameter is out of range, or the key is missing.
        """
        folder = given.pop("answer_log", "")
        rest = {name: given.pop(name, default) for name, default in DEFAULTS.items()}
        share, megabytes, days = (_number(rest, f"answer_log_{name}") for name in ("share", "mb", "days"))
        if share > 1:
            raise _wrong("answer_log_share", "a number > 0 and <= 1", rest["answer_log_share"])
        texts: TextForm | None = next((one for one in get_args(TextForm) if one == rest["answer_log_texts"]), None)
        if texts is None:
            raise _wrong("answer_log_texts", "plain, hash or none", rest["answer_log_texts"])
        if not folder:
            return None
        if not Path(folder).is_absolute():
            raise _wrong("answer_log", "the absolute path of a folder", folder)
        key = os.environ.get(KEY_VARIABLE, "")
        if texts == "hash" and len(key) < LEAST_KEY:
            raise OptionError(
                f"{KEY_VARIABLE}: must be set to a secret of {LEAST_KEY} or more characters for answer_log_texts hash, "
                "because a hash without a secret tells everyone who has guessed a text that it was sent"
            )
        return cls(Path(folder), share, texts, key.encode(), int(megabytes * MEGABYTE), days * DAY_S)


@dataclass(frozen=True)
class LoggedAnswer:
    """A sampled text that waits to be written. `scores` is None if the text has an error."""

    time: float
    request_id: str
    text: bytes
    encoded: EncodedText
    error: str | None
    scores: Scores | None
    options: DecodeOptions


class AnswerLog:
    """The log of one model instance.

    Args:
        predictor: answers; its schema and template describe the entries.
        described: what all entries say: model, version and checkpoint.
        record: takes counts for the metrics, by name and reason.
        tell: logs one line.
    """

    def __init__(
        self,
        config: AnswerLogConfig,
        predictor: Predictor,
        described: Mapping[str, str],
        record: Record,
        tell: Callable[[str], None],
    ) -> None:
        self._config = config
        self._predictor = predictor
        self._described = dict(described)
        self._record = record
        self._tell = tell
        self._files = RotatedFiles(config.folder, config.most_bytes, config.keep_s)
        self._random = random.Random()
        self._lock = threading.Lock()  # guards the queue and its size
        self._waiting: deque[LoggedAnswer] = deque()
        self._waiting_bytes = 0
        self._wake, self._closing = threading.Event(), False
        self._told = float("-inf")
        self._thread = threading.Thread(target=self._write_all, name="polyhead-answer-log", daemon=True)

    def start(self) -> None:
        """Starts the thread that writes."""
        self._thread.start()

    def offer(
        self,
        texts: Sequence[bytes],
        encoded: Sequence[EncodedText],
        scores: Scores,
        options: DecodeOptions,
        request_id: str,
    ) -> None:
        """Samples the texts of an answered request. Never waits for the disk, and never raises.

        Args:
            scores: ``(n, schema.width)``.
        """
        try:
            if options.private or request_id == PROBE_ID:
                return
            share, draw = self._config.share, self._random.random
            rows = range(len(texts)) if share >= 1 else [row for row in range(len(texts)) if draw() < share]
            if not rows:
                return
            now, answered = time.time(), are_answers(scores)
            for row in rows:
                is_answered = encoded[row].error is None and bool(answered[row])
                self._queue(
                    LoggedAnswer(
                        now,
                        request_id,
                        texts[row] if is_answered and self._config.texts != "none" else b"",
                        encoded[row],
                        None if is_answered else encoded[row].error or NOT_FINITE,
                        scores[row].copy() if is_answered else None,
                        options,
                    )
                )
        except Exception as error:
            self._say(f"an answer could not be logged: {type(error).__name__}")  # its message may quote the text

    def close(self) -> None:
        """Writes what waits, unless the disk takes longer than a few seconds, and ends the thread."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _queue(self, answer: LoggedAnswer) -> None:
        size = len(answer.text)
        if size > MOST_WAITING_BYTES:
            self._drop("too_large", 1)
            return
        with self._lock:
            fits = len(self._waiting) < MOST_WAITING and self._waiting_bytes + size <= MOST_WAITING_BYTES
            if fits:
                self._waiting.append(answer)
                self._waiting_bytes += size
            is_half_full = 2 * len(self._waiting) > MOST_WAITING or 2 * self._waiting_bytes > MOST_WAITING_BYTES
        if not fits:
            self._drop("queue_full", 1)
        if is_half_full:
            self._wake.set()

    def _write_all(self) -> None:
        while not self._closing:
            self._wake.wait(WRITE_EVERY_S)
            self._wake.clear()
            self._write_waiting()
        self._write_waiting()
        self._files.close()

    def _write_waiting(self) -> None:
        with self._lock:
            answers, self._waiting = self._waiting, deque()
            self._waiting_bytes = 0
        unwritten, removed = len(answers), self._files.removed
        try:
            lines = [line for line in map(self._line_of, answers) if line is not None]
            unwritten = len(lines)
            for written in self._files.write(lines):
                unwritten -= written
                self._record({("answer_log_entries", ""): written})
            self._files.clean()
        except Exception as error:
            self._drop("disk_full" if getattr(error, "errno", None) in FULL else "disk_error", unwritten)
            self._say(f"the answer log in {self._config.folder} cannot be written: {error}")
        if self._files.removed > removed:
            self._record({("answer_log_removed_files", ""): self._files.removed - removed})

    def _line_of(self, answer: LoggedAnswer) -> bytes | None:
        try:
            line = self._line(answer)
        except Exception as error:
            self._drop("unwritable", 1)
            self._say(f"an answer could not be logged: {type(error).__name__}")  # its message may quote the text
            return None
        if len(line) > self._files.longest:
            self._drop("too_large", 1)
            return None
        return line

    def _line(self, answer: LoggedAnswer) -> bytes:
        when = datetime.fromtimestamp(answer.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry: dict[str, Any] = {"time": when, **self._described}
        if answer.request_id:
            entry["request_id"] = answer.request_id[:MOST_ID]
        if answer.scores is None:
            return _dump(entry | {"error": answer.error})
        entry |= self._text(answer.text)
        entry |= {"token_count": answer.encoded.token_count, "truncated": answer.encoded.truncated}
        if options := answer.options.model_dump(exclude={"private"}, exclude_none=True):
            entry["options"] = options
        (decoded,) = self._predictor.decode([answer.encoded], answer.scores[None], answer.options)
        entry["answers"] = {name: _answer(head) for name, head in decoded["heads"].items()}
        schema = self._predictor.schema
        labelled = [(head, answer.scores[schema.columns[head.name]]) for head in schema if head.labels]
        entry["scores"] = {head.name: _scores(head, scores) for head, scores in labelled}
        entry["margins"] = {head.name: _margin(head, scores) for head, scores in labelled}
        return _dump(entry)

    def _text(self, element: bytes) -> dict[str, Any]:
        if self._config.texts == "none":
            return {}
        template = self._predictor.template
        read = element if template is None else template.read(element).text
        text = read if isinstance(read, str) else read.decode("utf-8")
        if self._config.texts == "hash":
            return {"text_hash": text_hash(text, self._config.key)}
        if template is not None and (pairs := json_object(element)) is not None:
            return {"text": text, "fields": {name: as_text(value) for name, value in pairs}}
        return {"text": text}

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._record({("answer_log_dropped", reason): count})

    def _say(self, line: str) -> None:
        now = time.monotonic()
        if now - self._told > TELL_EVERY_S:
            self._told = now
            self._tell(line)


def _dump(entry: Mapping[str, Any]) -> bytes:
    return orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _answer(head: Mapping[str, Any]) -> Any:
    """What the caller got: a label or None, a list of labels, or a number."""
    match head["kind"]:
        case HeadKind.SINGLE_LABEL:
            return head.get("label", head["labels"][0])
        case HeadKind.MULTI_LABEL:
            return head["labels"]
        case _:
            return head["value"]


def _scores(head: Head, scores: Scores) -> dict[str, Any]:
    """The scores by label, the best first."""
    best = np.argsort(-scores, kind="stable")[:MOST_LABELS]
    return {head.labels[place]: scores[place] for place in best.tolist()}


def _margin(head: Head, scores: Scores) -> float:
    """How far the answer is from another one.

    Of a single_label head the best score minus the second best; of a multi_label head the smallest distance of a score
    from its threshold.
    """
    if head.kind == HeadKind.SINGLE_LABEL:
        second, best = np.partition(scores, -2)[-2:] if len(scores) > 1 else (0.0, scores[0])
        return round(float(best) - float(second), 6)
    return round(float(np.abs(scores.astype(np.float64) - np.asarray(head.thresholds)).min()), 6)


def _number(given: Mapping[str, str], name: str) -> float:
    try:
        value = float(given[name])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise _wrong(name, "a number > 0", given[name])
    return value


def _wrong(name: str, wanted: str, value: str) -> OptionError:
    return OptionError(f"config.pbtxt: {name} must be {wanted}, got {value!r}")
