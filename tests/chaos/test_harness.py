"""The harness finds planted faults. Part of `make test`; the real faults are not."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from polyhead_client import RequestTimeoutError, ServerOverloadedError
from tests.chaos.attack import Attack, Door
from tests.chaos.conftest import Record
from tests.chaos.corpus import Corpus
from tests.chaos.count import Count
from tests.chaos.harm import serve, survive
from tests.chaos.hostile import Hostile, as_json, hostile_inputs, infer
from tests.chaos.load import VerifiedLoad
from tests.chaos.report import Fault, read_records, table, totals, write_record
from tests.e2e.processes import model_processes

CORPUS = Corpus(("one", "two"), np.array([[0.1, 0.9], [0.8, 0.2]], dtype=np.float32))


def answer(texts: list[str]) -> NDArray[np.float32]:
    """What CORPUS expects."""
    return np.stack([CORPUS.scores[CORPUS.texts.index(text)] for text in texts])


def run_load(ask: Callable[[list[str]], NDArray[np.float32]]) -> Count:
    """A load of a few requests."""
    with VerifiedLoad(ask, CORPUS, threads=2, pause_s=0.001) as load:
        deadline = time.monotonic() + 10
        while load.count.requests < 100:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    return load.count


def planted(outcome: Callable[[list[str]], NDArray[np.float32]]) -> Callable[[list[str]], NDArray[np.float32]]:
    """Gives right answers except to one request."""
    once = iter([outcome])
    return lambda texts: next(once, answer)(texts)


def test_right_answers_are_counted() -> None:
    """If nothing is wrong, nothing is found."""
    count = run_load(answer)
    assert count.answered == count.requests >= 100


def test_planted_wrong_answer_is_found() -> None:
    """One answer that belongs to another text is one wrong answer, and is kept as an example."""
    count = run_load(planted(lambda texts: 1 - answer(texts)))
    assert (count.wrong, count.lost) == (1, 0)
    assert count.examples[0].startswith("wrong: texts")


def test_answers_in_another_order_are_wrong() -> None:
    """The answers of a request's own texts, exchanged, are wrong."""
    assert CORPUS.is_right([0, 1], answer(["one", "two"]))
    assert not CORPUS.is_right([0, 1], answer(["two", "one"]))
    assert not CORPUS.is_right([0, 1], answer(["one"]))


def test_planted_lost_request_is_found() -> None:
    """One request without an answer is one lost request; a shed request is counted separately."""

    def fail(error: Exception) -> Callable[[list[str]], NDArray[np.float32]]:
        def ask(_: list[str]) -> NDArray[np.float32]:
            raise error

        return planted(ask)

    lost = run_load(fail(RequestTimeoutError("late")))
    assert (lost.lost, lost.shed, lost.wrong) == (1, 0, 0)
    assert "RequestTimeoutError: late" in lost.examples[0]
    shed = run_load(fail(ServerOverloadedError("busy")))
    assert (shed.lost, shed.shed, shed.wrong) == (0, 1, 0)
    broken = run_load(fail(RuntimeError("a defect of the client")))
    assert broken.lost == 1


def test_old_answers_pass_only_until_the_swap_ends() -> None:
    """During a swap, both versions' answers are right; afterwards only the new version's."""
    new = Corpus(CORPUS.texts, 1 - CORPUS.scores)
    with VerifiedLoad(answer, CORPUS, threads=1, pause_s=0.001) as load:
        load.expect(CORPUS, new)
        load.wait_for(10)
        load.expect(new)
        deadline = time.monotonic() + 10
        while not load.count.wrong:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_corpus_tells_texts_apart(checkpoint: Path) -> None:
    """Texts with too similar answers are refused, because a mix-up could not be seen."""
    assert len(Corpus.of(checkpoint, ["Rain.", "Prices rose."]).scores) == 2
    with pytest.raises(ValueError, match="another text"):
        Corpus.of(checkpoint, ["Rain.", "Rain."])


class Impostor(BaseHTTPRequestHandler):
    """Answers as the text of the request says: a status, nothing, or another text's scores."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Reads the request and does as its text says."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["inputs"][0]["data"][0] if body else "hang up"
        if text == "hang up":
            self.close_connection = True
            return
        scores = answer(["two" if text == "mix up" else "one"])
        body = json.dumps({"outputs": [{"name": "SCORES", "shape": [1, 2], "data": scores.ravel().tolist()}]}).encode()
        self.send_response(int(text) if text.isdigit() else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def impostor() -> Iterator[Door]:
    """A server with every fault that an attack must find."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Impostor)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield Door("127.0.0.1", server.server_address[1], (("Host", "here"),))
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("one", "answered"), ("mix up", "wrong"), ("400", "lost"), ("500", "lost"), ("503", "shed"),
        ("hang up", "lost"),
    ],
)  # fmt: skip
def test_attack_judges_what_is_well_formed(impostor: Door, text: str, outcome: str) -> None:
    """A well-formed request with hostile texts must get their scores."""
    attack = Attack(impostor, {text.encode(): CORPUS.scores[0]}, threads=1)
    attack.send_all([as_json("planted", infer([text]), (text.encode(),))])
    assert attack.count.numbers()[outcome] == attack.count.requests == 1


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("400", "answered"), ("413", "answered"), ("500", "lost"), ("502", "lost"), ("504", "lost"), ("503", "shed"),
        ("429", "shed"), ("501", "answered"), ("hang up", "lost"),
    ],
)  # fmt: skip
def test_attack_judges_what_is_malformed(impostor: Door, text: str, outcome: str) -> None:
    """A 500 that the caller caused and a connection without an answer are found; a 4xx is an answer."""
    attack = Attack(impostor, {}, threads=1)
    attack.send_all([as_json("planted", infer([text]))])
    assert attack.count.numbers()[outcome] == attack.count.requests == 1


def test_unfinished_requests_may_be_left_without_an_answer(impostor: Door) -> None:
    """An unfinished request without an answer is not lost."""
    attack = Attack(impostor, {}, threads=1)
    headers = (("Content-Length", "1000"),)
    attack.send_all([Hostile("planted", b"{}", headers=headers, framed=True, finished=False)])
    assert attack.count.numbers()["answered"] == 1
    assert attack.statuses == {("planted", "silent"): 1}


def test_hostile_inputs_are_the_same_each_time() -> None:
    """A seed gives the same requests, and a few thousand contain every kind."""
    first, again = (list(hostile_inputs(3000, seed=1)) for _ in range(2))
    assert first == again
    assert len({hostile.kind for hostile in first}) == 18
    assert sum(hostile.texts is not None for hostile in first) > 300


def test_record_fails_on_what_was_lost_or_wrong(record: Record) -> None:
    """A fault fails its test if a request is lost, a request is answered wrongly, or none is answered."""
    for count in (
        Count(requests=2, answered=1, lost=1),
        Count(requests=2, answered=1, wrong=1),
        Count(requests=1, shed=1),
    ):
        with pytest.raises(AssertionError):
            record("planted", count)


def test_table_and_totals(tmp_path: Path) -> None:
    """Records are read back in order; the last line sums them up."""
    faults = [
        Fault.of("model process killed", Count(requests=1200, answered=1200), 3.14, {}),
        Fault.of("overload", Count(requests=10, answered=6, shed=3, lost=1), None, {"texts_s": 7}),
    ]
    for fault in faults:
        write_record(fault, tmp_path)
    assert read_records(tmp_path) == faults
    assert totals(faults) == {"faults": 2, "requests": 1210, "lost": 1, "wrong": 0}
    assert table(faults).splitlines()[2:] == [
        "| model process killed |    1,200 |    1,200 |    0 |    0 |     0 |        3.1 |",
        "| overload             |       10 |        6 |    3 |    1 |     0 |            |",
    ]


def test_smoke(repository: Path, sound: Path, corpus: Corpus) -> None:
    """One real fault: a killed model process, with two replicas and one client."""
    with serve(repository) as harmed, serve(sound) as healthy:
        (victim,) = model_processes(harmed)
        load, recovery_s = survive(harmed, healthy, corpus, lambda: os.kill(victim, signal.SIGKILL))
    assert load.count.answered == load.count.requests > 200, load.count
    assert recovery_s > 0
