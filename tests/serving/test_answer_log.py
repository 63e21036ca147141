"""The answer log: what is sampled and written, and that nothing of it is in the way of an answer."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.decode import DecodeOptions
from polyhead.errors import OptionError
from polyhead.predictor import Predictor
from polyhead.schema import Head, Schema
from polyhead_serving import answer_log
from polyhead_serving.answer_log import PROBE_ID, AnswerLog, AnswerLogConfig
from tests.full_disk_head import limited
from tests.serving import fake_triton_python_backend_utils as pb_utils
from tests.serving.fake_triton_python_backend_utils import Request, texts
from tests.serving.served_model import SECONDS, only, predictions, start
from tests.tiny import OVERFLOWING, overflow, write_tiny_checkpoint

KEY = "a secret of 24 characters"


def config(folder: Path, **values: str) -> AnswerLogConfig:
    """A config of the parameters ``answer_log_NAME``."""
    given = {"answer_log": str(folder), **{f"answer_log_{name}": value for name, value in values.items()}}
    found = AnswerLogConfig.read(given)
    assert found is not None
    return found


def entries(folder: Path) -> list[dict[str, Any]]:
    """All lines of all files, in the order in which they were written."""
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()]


class Log:
    """An answer log of a predictor, with what it counts and tells."""

    def __init__(self, predictor: Predictor, wanted: AnswerLogConfig) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.told: list[str] = []
        self.predictor = predictor
        described = {"model": "m", "version": "7", "checkpoint": "abc"}
        self.log = AnswerLog(wanted, predictor, described, self.count, self.told.append)

    def count(self, counts: Mapping[tuple[str, str], int]) -> None:
        self.counts.update(counts)

    def offer(self, *rows: bytes, request_id: str = "", **options: Any) -> None:
        """Answers the texts and offers them to the log."""
        encoded = self.predictor.encode(rows)
        scores = self.predictor.score(encoded)
        self.log.offer(rows, encoded, scores, DecodeOptions(**options), request_id)

    def close(self) -> None:
        """Writes what waits."""
        self.log.start()
        self.log.close()

    def total(self, name: str) -> dict[str, int]:
        """Counts by reason."""
        return {reason: count for (key, reason), count in self.counts.items() if key == name and count}


@pytest.fixture(scope="module")
def predictor(served_repository: Path) -> Predictor:
    """The tiny model."""
    return Predictor.load(served_repository / "gpt2_classifier" / "1" / "checkpoint")


@pytest.fixture
def make(predictor: Predictor, tmp_path: Path) -> Callable[..., Log]:
    """Makes logs in the folder ``log`` of the test that take every text unless they are told otherwise."""
    return lambda **values: Log(predictor, config(tmp_path / "log", **({"share": "1"} | values)))


def test_an_entry_says_what_was_answered(make: Callable[..., Log], predictor: Predictor, tmp_path: Path) -> None:
    """It has the text, the answers, all scores by label, and who answered when; the scores are the engine's numbers."""
    log = make()
    began = time.time()
    log.offer(b"Rain and sport", b"word " * 200, request_id="r-1", top_k=2, threshold=0.0)
    log.close()
    first, second = entries(tmp_path / "log")
    assert (first["model"], first["version"], first["checkpoint"], first["request_id"]) == ("m", "7", "abc", "r-1")
    assert began - 0.001 <= datetime.fromisoformat(first["time"]).timestamp() <= time.time()
    assert (first["text"], first["truncated"], second["truncated"]) == ("Rain and sport", False, True)
    assert first["options"] == {"top_k": 2, "threshold": 0.0}
    ((scores),) = predictor.score(predictor.encode([b"Rain and sport"]))
    for head in predictor.schema.single_label_heads:
        found = first["scores"][head.name]
        assert [np.float32(found[label]) for label in head.labels] == scores[
            predictor.schema.columns[head.name]
        ].tolist()
        assert list(found.values()) == sorted(found.values(), reverse=True)
    (answer,) = predictor.predict([b"Rain and sport"], DecodeOptions(top_k=2, threshold=0.0))
    assert first["answers"] == {
        "topic": answer["heads"]["topic"]["labels"][0],
        "mood": answer["heads"]["mood"]["labels"],
        "stars": answer["heads"]["stars"]["value"],
    }
    assert log.total("answer_log_entries") == {"": 2}
    assert "stars" not in first["scores"]


def test_margins_by_hand(make: Callable[..., Log], tmp_path: Path) -> None:
    """A single_label head's is the best score minus the second, a multi_label head's the nearest threshold."""
    log = make()
    scores = np.array([[0.2, 0.5, 0.3, 0.9, 0.45, 0.1, 0.0, 3.25]], np.float32)  # topic, mood (thresholds 0.5), stars
    log.log.offer([b"Rain"], log.predictor.encode([b"Rain"]), scores, DecodeOptions(), "")
    log.close()
    (entry,) = entries(tmp_path / "log")
    assert entry["margins"] == {"topic": 0.2, "mood": 0.05}
    assert entry["answers"] == {"topic": "sport", "mood": ["happy"], "stars": 3.25}
    assert entry["scores"]["topic"] == {"sport": 0.5, "science": 0.3, "news": 0.2}


def test_a_rejected_answer_is_null(make: Callable[..., Log], tmp_path: Path) -> None:
    """What the caller got is logged: no label."""
    log = make()
    log.offer(b"Rain", reject_below=1.0)
    log.close()
    assert entries(tmp_path / "log")[0]["answers"]["topic"] is None


def test_a_text_with_an_error_is_not_kept(make: Callable[..., Log], tmp_path: Path) -> None:
    """Of a text without an answer, only the error is logged."""
    log = make()
    log.offer(b"\xff secret", b"  ", b"Rain")
    log.close()
    first, second, third = entries(tmp_path / "log")
    for entry in (first, second):
        assert entry.keys() == {"time", "model", "version", "checkpoint", "error"}
    assert "UTF-8" in first["error"]
    assert "text" in third
    assert b"secret" not in b"".join(file.read_bytes() for file in (tmp_path / "log").iterdir())


def test_a_text_that_overflows_is_not_kept(served_repository: Path, tmp_path: Path) -> None:
    """Its error is logged, without the text."""
    write_tiny_checkpoint(tmp_path / "checkpoint")
    overflow(tmp_path / "checkpoint")
    log = Log(Predictor.load(tmp_path / "checkpoint"), config(tmp_path / "log", share="1"))
    log.offer(OVERFLOWING.encode())
    log.close()
    (entry,) = entries(tmp_path / "log")
    assert "not finite" in entry["error"]
    assert "text" not in entry


def test_private_texts_and_probes_leave_no_trace(make: Callable[..., Log], tmp_path: Path) -> None:
    """Nothing of a private request or of the product's own checks is written."""
    log = make()
    log.offer(b"Rain", private=True)
    log.offer(b"Rain", request_id=PROBE_ID)
    log.close()
    assert not (tmp_path / "log").exists()
    assert not log.counts


@pytest.mark.parametrize("form", ["hash", "none"])
def test_texts_may_be_left_out(
    make: Callable[..., Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """With `hash` an entry has the HMAC-SHA256 of the text, with `none` neither."""
    monkeypatch.setenv("POLYHEAD_ANSWER_LOG_KEY", KEY)
    log = make(texts=form)
    log.offer("Größe".encode())
    log.close()
    (entry,) = entries(tmp_path / "log")
    wanted = hmac.new(KEY.encode(), "Größe".encode(), hashlib.sha256).hexdigest()
    assert entry.get("text_hash") == (wanted if form == "hash" else None)
    assert "text" not in entry


def test_fields_are_logged_as_they_are_rendered(tmp_path: Path) -> None:
    """With a template an entry has the text that the model reads, and the fields as texts."""
    fields = [json.dumps({"Title": "Coat", "Body": "Warm."})]
    write_tiny_checkpoint(tmp_path / "checkpoint", text_template="[[{Title}. ]]{Body}", template_fields=fields)
    log = Log(Predictor.load(tmp_path / "checkpoint"), config(tmp_path / "log", share="1"))
    log.offer(b'{"Title": "Coat", "Body": 7}', b"Coat. 7")
    log.close()
    first, second = entries(tmp_path / "log")
    assert (first["text"], first["fields"]) == ("Coat. 7", {"Title": "Coat", "Body": "7"})
    assert (second["text"], "fields" in second) == ("Coat. 7", False)


def test_a_share_is_sampled(make: Callable[..., Log], tmp_path: Path) -> None:
    """Each text is drawn by itself: of 4,000 texts at a share of 0.25, close to 1,000 (5 standard deviations: 137)."""
    log = make(share="0.25")
    log.log._random.seed(7)
    encoded, scores = log.predictor.encode([b"Rain"]), np.full((1, 8), 0.5, np.float32)
    for _ in range(40):
        log.log.offer([b"Rain"] * 100, encoded * 100, scores.repeat(100, 0), DecodeOptions(), "")
    log.close()
    assert abs(len(entries(tmp_path / "log")) - 1000) < 137


def test_only_the_best_labels_of_a_large_head_are_kept(tmp_path: Path) -> None:
    """Of a head of 150 labels an entry has the 100 best."""
    schema = Schema([Head(name="many", kind="single_label", labels=tuple(f"l{i}" for i in range(150)))])
    write_tiny_checkpoint(tmp_path / "checkpoint", schema=schema)
    log = Log(Predictor.load(tmp_path / "checkpoint"), config(tmp_path / "log", share="1"))
    scores = np.arange(150, dtype=np.float32)[None] / 150
    log.log.offer([b"Rain"], log.predictor.encode([b"Rain"]), scores, DecodeOptions(), "")
    log.close()
    (entry,) = entries(tmp_path / "log")
    assert list(entry["scores"]["many"]) == [f"l{i}" for i in range(149, 49, -1)]


def test_files_are_private(make: Callable[..., Log], tmp_path: Path) -> None:
    """Folder and files are for their own user only, whatever the umask is."""
    before = os.umask(0)
    try:
        log = make()
        log.offer(b"Rain")
        log.close()
    finally:
        os.umask(before)
    (file,) = (tmp_path / "log").iterdir()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


class StuckDisk:
    """Takes the place of a log's files; writing waits until the test lets it go on."""

    longest = 1 << 20
    removed = 0

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.lines: list[bytes] = []

    def write(self, lines: list[bytes]) -> Iterator[int]:
        self.has_begun.set()
        assert self.may_end.wait(SECONDS)
        self.lines += lines
        yield len(lines)

    def clean(self) -> None:
        """Nothing is old."""

    def close(self) -> None:
        """Nothing is open."""


def test_a_stuck_disk_holds_up_no_answer(make: Callable[..., Log], monkeypatch: pytest.MonkeyPatch) -> None:
    """While a write hangs, answers are offered without waiting; the queue stays bounded, and the rest is counted."""
    monkeypatch.setattr(answer_log, "MOST_WAITING", 10)
    log, disk = make(), StuckDisk()
    monkeypatch.setattr(log.log, "_files", disk)
    log.log.start()
    log.offer(b"Rain")
    assert disk.has_begun.wait(SECONDS)
    for _ in range(25):
        log.offer(b"Rain")
    assert log.total("answer_log_dropped") == {"queue_full": 15}
    assert log.total("answer_log_entries") == {}
    disk.may_end.set()
    log.log.close()
    assert log.total("answer_log_entries") == {"": 11}
    assert len(disk.lines) == 11


def test_the_queue_is_bounded_in_bytes(make: Callable[..., Log], monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts fill the queue too; one that is larger than the whole queue is dropped as too large."""
    monkeypatch.setattr(answer_log, "MOST_WAITING_BYTES", 1000)
    log = make()
    for size in (400, 400, 400, 1001):
        log.offer(b"a" * size)
    assert log.total("answer_log_dropped") == {"queue_full": 1, "too_large": 1}


def test_an_entry_that_no_file_can_hold_is_dropped(make: Callable[..., Log], tmp_path: Path) -> None:
    """An entry may be as large as a file, a 16th of the bound."""
    log = make(mb="0.1")
    log.offer(b"a " * 5000)
    log.offer(b"Rain")
    log.close()
    assert log.total("answer_log_dropped") == {"too_large": 1}
    assert [entry["text"] for entry in entries(tmp_path / "log")] == ["Rain"]


def test_a_full_disk_drops_and_counts(make: Callable[..., Log], tmp_path: Path) -> None:
    """The file ends with a whole line; the rest is counted, one line is logged, and later entries are written."""
    log = make()
    with limited(3000):
        for _ in range(20):
            log.offer(b"Rain")
        log.log._write_waiting()
        log.log._write_waiting()
    written, dropped = log.total("answer_log_entries")[""], log.total("answer_log_dropped")["disk_full"]
    assert written + dropped == 20
    assert 0 < len(entries(tmp_path / "log")) == written
    assert len(log.told) == 1
    assert os.strerror(errno.EFBIG) in log.told[0]
    log.offer(b"Sport")
    log.close()
    assert entries(tmp_path / "log")[-1]["text"] == "Sport"


def test_a_fault_costs_one_entry_and_tells_nothing(
    make: Callable[..., Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that cannot be built is counted, the others are written, and no text is quoted."""
    log = make()
    text = log.log._text

    def fail(element: bytes) -> dict[str, Any]:
        return text(element if element == b"Rain" else element.decode("ascii").encode())

    monkeypatch.setattr(log.log, "_text", fail)
    log.offer("Größe".encode(), b"Rain")
    log.close()
    assert [entry["text"] for entry in entries(tmp_path / "log")] == ["Rain"]
    assert log.total("answer_log_dropped") == {"unwritable": 1}
    assert log.told == ["an answer could not be logged: UnicodeDecodeError"]


def test_a_folder_that_cannot_be_written_drops_and_counts(make: Callable[..., Log], tmp_path: Path) -> None:
    """A file in the place of the folder, for example: answers are dropped, and the log says why."""
    (tmp_path / "log").write_text("")
    log = make()
    log.offer(b"Rain")
    log.close()
    assert log.total("answer_log_dropped") == {"disk_error": 1}
    assert str(tmp_path / "log") in log.told[0]


WRONG = {
    "share of nothing": ({"answer_log_share": "0"}, "answer_log_share must be a number > 0, got '0'"),
    "share above 1": ({"answer_log_share": "1.5"}, "answer_log_share must be a number > 0 and <= 1, got '1.5'"),
    "relative": ({"answer_log": "logs"}, "answer_log must be the absolute path of a folder, got 'logs'"),
    "form": ({"answer_log_texts": "md5"}, "answer_log_texts must be plain, hash or none, got 'md5'"),
    "size": ({"answer_log_mb": "big"}, "answer_log_mb must be a number > 0, got 'big'"),
    "days": ({"answer_log_days": "-1"}, "answer_log_days must be a number > 0, got '-1'"),
    "no key": ({"answer_log": "/log", "answer_log_texts": "hash"}, "POLYHEAD_ANSWER_LOG_KEY: must be set"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_wrong_parameters_are_named(given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrong parameter is refused with its name, also if nothing would be logged."""
    monkeypatch.delenv("POLYHEAD_ANSWER_LOG_KEY", raising=False)
    with pytest.raises(OptionError, match=said.replace("?", ".")):
        AnswerLogConfig.read(dict(given))


def test_without_a_folder_nothing_is_logged() -> None:
    """That is the default; the parameters are taken out even so."""
    given = {"answer_log_share": "0.5", "other": "1"}
    assert AnswerLogConfig.read(given) is None
    assert given == {"other": "1"}


def test_a_model_logs_what_it_answers(served_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """model.py logs texts with their scores, the request's id and the checkpoint, and counts them in the metrics."""
    monkeypatch.setattr(pb_utils.MetricFamily, "registry", {})
    folder = tmp_path / "log"
    model = start(served_repository, monkeypatch, at_once_s="60", answer_log=str(folder), answer_log_share="1")
    response = only(model, Request(texts(b"Rain", b" "), id="r-9"))
    only(model, Request(texts(b"Sport"), '{"private": true}', ("SCORES",)))
    only(model, Request(texts(b"Snow"), outputs=("TOKEN_COUNT",)))
    only(model, Request(texts(b"Wind"), outputs=("SCORES",), id=UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")))
    model.finalize()
    first, second, third = entries(folder)
    assert (first["text"], first["request_id"], first["version"]) == ("Rain", "r-9", "1")
    assert first["answers"]["topic"] == predictions(response)[0]["heads"]["topic"]["labels"][0]
    assert second["error"] == predictions(response)[1]["error"]
    assert (third["text"], "request_id" in third) == ("Wind", False)
    content = (served_repository / "gpt2_classifier" / "1" / "checkpoint" / "config.json").read_bytes()
    assert len(first["checkpoint"]) == 16
    assert content
    assert sum(pb_utils.MetricFamily.value("polyhead_answer_log_entries_total")) == 3
    assert pb_utils.MetricFamily.value("polyhead_answer_log_dropped_total") == []


def test_no_log_is_the_default(model: Any, tmp_path: Path) -> None:
    """Without the parameter, `private` is accepted and nothing is written."""
    response = only(model, Request(texts(b"Rain"), '{"private": true}'))
    assert response.error is None
    assert model.answer_log is None
    wrong = only(model, Request(texts(b"Rain"), '{"private": "yes"}'))
    assert "private" in str(wrong.error)
