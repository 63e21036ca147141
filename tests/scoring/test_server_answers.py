"""Scoring with a server: it may restart, reject a batch, crash, or change its model; no answer is lost or wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyhead_client.testing import Failure, FakeServer
from polyhead_scoring import ScoringError, scorer, server_answers
from polyhead_scoring.server_answers import ServerAnswers, ServerOptions
from tests.scoring.conftest import Served, known_answer
from tests.scoring.texts import read_rows


def rows_csv(folder: Path, count: int) -> None:
    """A file of numbered rows."""
    (folder / "in.csv").write_text("text\n" + "".join(f"row {n}\n" for n in range(count)), encoding="utf-8")


def numbers(path: Path) -> list[float]:
    """The numbers of the rows that were answered, in the output's order."""
    return [float(row["stars_value"]) for row in read_rows(path)]


def fail_on(fake: Served, words: bytes, failure: Failure) -> Callable[[], None]:
    """Makes each request fail that has these words; gives what ends that."""
    reply = fake.server.reply
    fake.server.reply = lambda request, none: reply(  # type: ignore[method-assign] # a test's own server
        request, failure if words in request.body else none
    )

    def end() -> None:
        fake.server.reply = reply  # type: ignore[method-assign] # as above

    return end


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests wait for no server longer than they must."""
    monkeypatch.setattr(server_answers, "LONGEST_PAUSE_S", 0.05)


def test_a_failing_server_leaves_what_is_done(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """A server that keeps failing on a batch ends the run with code 2; the same command asks for the rest alone."""
    rows_csv(tmp_path, 100)
    options = ["--batch-size", "10", "--workers", "1", "--partition-tokens", "20"]
    end = fail_on(fake, b"row 60", Failure(500, "out of memory"))
    result = score("in.csv", "out.csv", *options)
    assert result.exit_code == 2
    assert "out of memory" in result.stderr
    assert "gave up after 6 tries" in result.stderr
    assert "the first text without an answer begins 'row 60'" in result.stderr
    assert not (tmp_path / "out.csv").exists()
    end()
    fake.server.requests.clear()
    result = score("in.csv", "out.csv", *options)
    assert result.exit_code == 0
    assert "continuing: " in result.stderr
    asked = [text for text in fake.texts if text != "canary"]
    assert 35 <= len(asked) <= 60
    assert asked == [f"row {n}" for n in range(100 - len(asked), 100)]
    assert numbers(tmp_path / "out.csv") == list(range(100))


def test_a_server_that_is_not_up_yet(tmp_path: Path) -> None:
    """The command says that it waits, and scores when the server comes up; without patience it ends at once."""
    rows_csv(tmp_path, 20)
    server = FakeServer(answer=known_answer)
    with server.serve() as url:
        pass  # the port is free again
    command = [sys.executable, "-m", "polyhead_scoring.command", str(tmp_path / "in.csv"), "--output",
               str(tmp_path / "out.csv"), "--server", url]  # fmt: skip
    hasty = subprocess.run([*command, "--wait-s", "0"], capture_output=True, text=True, check=False)
    assert hasty.returncode == 2
    assert "no connection to" in hasty.stderr
    assert not list(tmp_path.glob("out.csv*"))
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert waiting.stderr is not None
    assert waiting.stderr.readline().startswith(f"waiting up to 600 s for {url} (no connection to")
    with serve_at(server, url):
        _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, said
    assert f"{url} answers again after" in said
    assert numbers(tmp_path / "out.csv") == list(range(20))


def serve_at(server: FakeServer, url: str) -> Any:
    """The fake behind the very port that it had before."""
    from http.server import ThreadingHTTPServer
    from unittest import mock

    port = int(url.rpartition(":")[2])
    bind = ThreadingHTTPServer.server_bind

    def at_port(self: ThreadingHTTPServer) -> None:
        self.server_address = ("127.0.0.1", port)
        bind(self)

    patched = mock.patch.object(ThreadingHTTPServer, "server_bind", at_port)

    class Serving:
        def __enter__(self) -> str:
            patched.start()
            self.serving = server.serve()
            return self.serving.__enter__()

        def __exit__(self, *error: Any) -> None:
            self.serving.__exit__(None, None, None)
            patched.stop()

    return Serving()


def test_a_server_that_restarts(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """While the server is away the run waits; afterwards each row has its own answer, once and in order."""
    rows_csv(tmp_path, 200)
    answer = fake.server.answer
    fallen: list[float] = []

    def fall(text: str) -> Any:
        if text == "row 77" and not fallen:
            fallen.append(time.monotonic())
            fake.server.failure = Failure(broken=True)

            def rise() -> None:
                time.sleep(0.4)
                fake.server.failure = Failure(503, "model loads")
                time.sleep(0.4)
                fake.server.failure = None

            threading.Thread(target=rise).start()
        return answer(text)  # type: ignore[operator] # it is a function

    fake.server.answer = fall
    result = score("in.csv", "out.csv", "--batch-size", "8", "--partition-tokens", "40", "--timeout-s", "1")
    assert result.exit_code == 0, result.stderr
    assert "waiting up to 600 s for" in result.stderr
    assert "answers again after" in result.stderr
    assert fallen
    assert numbers(tmp_path / "out.csv") == list(range(200))


def test_patience_ends(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """A server that stays away longer than --wait-s ends the run with code 2, and what is done is kept."""
    rows_csv(tmp_path, 30)
    answer = fake.server.answer

    def fall(text: str) -> Any:
        if text == "row 20":
            fake.server.failure = Failure(broken=True)
        return answer(text)  # type: ignore[operator] # it is a function

    fake.server.answer = fall
    options = ["--batch-size", "2", "--workers", "1", "--partition-tokens", "4", "--wait-s", "0.5"]
    result = score("in.csv", "out.csv", *options)
    assert result.exit_code == 2
    assert "was not ready within" in result.stderr
    assert len(list((tmp_path / "out.csv.partial" / "done").iterdir())) > 3
    fake.server.failure, fake.server.answer = None, answer
    assert score("in.csv", "out.csv", *options).exit_code == 0
    assert numbers(tmp_path / "out.csv") == list(range(30))


def test_an_overloaded_server_is_waited_for(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """Overload is not the texts' fault: however often the server sheds them, only --wait-s ends the run."""
    rows_csv(tmp_path, 30)
    end = fail_on(fake, b"row 20", Failure(429, "busy", {"Retry-After": "0"}))
    options = ["--batch-size", "2", "--workers", "1", "--partition-tokens", "4"]
    result = score("in.csv", "out.csv", *options, "--wait-s", "3")
    assert result.exit_code == 2
    assert (found := re.search(r"busy.*gave up after (\d+) tries in \d s", result.stderr))
    assert int(found[1]) > server_answers.TRIES + 1
    threading.Timer(2, end).start()
    assert score("in.csv", "out.csv", *options).exit_code == 0
    assert numbers(tmp_path / "out.csv") == list(range(30))


def test_a_rejected_text_costs_only_itself(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """If the server rejects a batch, its texts are asked one by one; the one at fault has the reason as its error."""
    rows_csv(tmp_path, 100)
    fail_on(fake, b"row 33", Failure(413, "too large"))
    result = score("in.csv", "out.csv", "--batch-size", "16", "--partition-tokens", "50")
    assert result.exit_code == 1, result.stderr
    rows = read_rows(tmp_path / "out.csv")
    assert [row["text"] for row in rows] == [f"row {n}" for n in range(100)]
    assert [n for n, row in enumerate(rows) if row["error"]] == [33]
    assert "rejected the request" in rows[33]["error"]
    assert all(float(row["stars_value"]) == n for n, row in enumerate(rows) if n != 33)


def test_a_refused_key_is_not_a_bad_row(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """If the server rejects every text, the run stops instead of calling all rows bad."""
    rows_csv(tmp_path, 3)
    for status in (401, 400):
        end = fail_on(fake, b"PREDICTION", Failure(status, "no"))
        assert score("in.csv", "out.csv").exit_code == 2
        end()


def test_too_long_texts(
    fake: Served, score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that no request can carry is a row with an error, and the others are answered."""
    monkeypatch.setattr(ServerAnswers, "longest_text", 100)
    (tmp_path / "in.csv").write_text(f"text\nrow 0\n{'x' * 101}\nrow 2\n", encoding="utf-8")
    assert score("in.csv", "out.csv").exit_code == 1
    rows = read_rows(tmp_path / "out.csv")
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert "the text has 101 bytes" in rows[1]["error"]


def test_answers_of_another_kind_than_the_schemas(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """A server whose answers contradict its schema ends the run with one line."""
    rows_csv(tmp_path, 3)
    other = {"kind": "single_label", "labels": ["many"], "scores": [0.9]}
    answer = {"heads": {"topic": other, "mood": other, "stars": other}, "token_count": 1, "truncated": False}
    fake.server.answer = lambda text: answer
    result = score("in.csv", "out.csv")
    assert result.exit_code == 2
    assert "heads changed during the run" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("change", ["a head less", "a label more", "another threshold"])
def test_heads_that_change(change: str, fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """A model with other heads under way is noticed before any of its answers is written; what is done is kept."""
    rows_csv(tmp_path, 60)
    heads = [dict(head) for head in fake.server.heads]
    other = [dict(head) for head in heads]
    match change:
        case "a head less":
            del other[1]
        case "a label more":
            other[0]["labels"] = [*other[0]["labels"], "weather"]
        case _:
            other[1]["thresholds"] = [0.1, 0.4]
    answer = fake.server.answer

    def swap(text: str) -> Any:
        if text == "row 40":
            fake.server.heads = other
        return answer(text)  # type: ignore[operator] # it is a function

    fake.server.answer = swap
    options = ["--batch-size", "4", "--workers", "1", "--partition-tokens", "10"]
    result = score("in.csv", "out.csv", *options)
    assert result.exit_code == 2
    assert "heads changed during the run" in result.stderr
    done = len(list((tmp_path / "out.csv.partial" / "done").iterdir()))
    assert 0 < done <= 10
    result = score("in.csv", "out.csv", *options)
    assert result.exit_code == 2
    assert "cannot continue: head " in result.stderr
    fake.server.heads, fake.server.answer = heads, answer
    assert score("in.csv", "out.csv", *options).exit_code == 0
    assert numbers(tmp_path / "out.csv") == list(range(60))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--top-k", "2"], "top_k was"),
        (["--threshold", "0.5"], "threshold was"),
        (["--model-version", "2"], "model version was"),
        (["--model", "other"], "model was"),
        (["--text-column", "id"], "text_column was"),
        (["--encoding", "cp1252"], "encoding was"),
    ],
)
def test_another_job_is_refused(
    change: list[str], words: str, fake: Served, score: Callable[..., Any], tmp_path: Path
) -> None:
    """A run continues only with the same options; --restart begins anew."""
    (tmp_path / "in.csv").write_text("text,id\na,1\nb,2\n", encoding="utf-8")
    end = fail_on(fake, b"PREDICTION", Failure(500, "down"))
    assert score("in.csv", "out.csv", "--wait-s", "0").exit_code == 2
    end()
    result = score("in.csv", "out.csv", *change)
    assert result.exit_code == 2
    assert f"cannot continue: {words}" in result.stderr
    assert score("in.csv", "out.csv", *change, "--restart").exit_code == 0
    assert len(read_rows(tmp_path / "out.csv")) == 2


def test_many_bad_rows_do_not_pile_up(
    fake: Served, score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If bad rows come in thousands, the answers before them are waited for, and all rows keep their order."""
    monkeypatch.setattr(scorer, "MOST_BAD_ROWS", 10)
    (tmp_path / "in.csv").write_text(
        "text\n" + "".join(f"row {n}\n" if n % 40 == 0 else '""\n' for n in range(200)), encoding="utf-8"
    )
    # The blank texts are the server's to judge; these are the reader's.
    (tmp_path / "in.jsonl").write_text(
        "".join(f'{{"text": "row {n}"}}\n' if n % 40 == 0 else '{"text": null}\n' for n in range(200)), encoding="utf-8"
    )
    for source in ("in.csv", "in.jsonl"):
        assert score(source, f"{source}.out.jsonl", "--partition-tokens", "7").exit_code == 1
        rows = read_rows(tmp_path / f"{source}.out.jsonl")
        assert [n for n, row in enumerate(rows) if row["error"] is None] == [0, 40, 80, 120, 160]
        assert [row["stars_value"] for row in rows if row["error"] is None] == [0, 40, 80, 120, 160]


def test_parts_are_read_as_far_as_the_window_reaches(fake: Served) -> None:
    """A server is asked ahead into the next parts, but a slow one does not make the whole input come into memory."""
    options = ServerOptions((fake.url,), batch_size=2, workers=1)
    answers = ServerAnswers(options, {}, lambda line: None)
    handed: list[int] = []

    def parts() -> Any:
        for number in range(100):
            handed.append(number)
            yield [f"row {number}"]

    given = answers.answer(parts())
    for _ in range(5):
        next(given)
    assert 5 < len(handed) < 20
    answers.client.close()


def test_wrong_options_are_the_clients_errors() -> None:
    """A server that cannot be meant, and one that never answers, raise before anything is read."""
    with pytest.raises(ScoringError, match="no connection to"):
        ServerAnswers(ServerOptions(("127.0.0.1:1",), wait_s=0), {}, lambda line: None)
