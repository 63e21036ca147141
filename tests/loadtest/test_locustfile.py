"""The load test against a fake Triton, in its own process, because locust patches the interpreter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyhead_client.testing import Failure
from tests.client.fake_triton import ANSWER, SCHEMA, SCORES, FakeTriton, serve_fake
from tests.client.test_http import certificate, encrypted  # noqa: F401 -- certificate is a fixture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    """A fresh fake Triton."""
    with serve_fake() as server:
        yield server


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A golden file that agrees with the fake."""
    rows = [
        {"text": text, "scores": SCORES, "token_count": 4, "truncated": False} for text in ("a goal", "naïve", "third")
    ]
    path = tmp_path / "golden.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def locust_command(url: str, golden: Path | None, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command of a short run with two users, and its environment."""
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "-u", "2", "-t", "1s"]
    command += ["--host", url, *arguments]  # http:// is what a host without a scheme means
    command += ["--golden", str(golden), "--summary", str(golden.parent / "summary.json")] if golden else []
    paths = [str(ROOT), str(ROOT / "client"), os.environ.get("PYTHONPATH", "")]
    return command, {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run_locust(url: str, golden: Path | None, *arguments: str) -> tuple[int, str, dict[str, Any] | None]:
    """Exit code, output and summary of a short run."""
    command, environment = locust_command(url, golden, *arguments)
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False)
    written = golden.parent / "summary.json" if golden else None
    summary = json.loads(written.read_text()) if written and written.is_file() else None
    return result.returncode, result.stdout + result.stderr, summary


def test_right_answers_are_exit_code_0(fake: FakeTriton, golden: Path) -> None:
    """When all answers agree the run succeeds, and the summary counts texts, not requests."""
    code, output, summary = run_locust(fake.url, golden, "--texts-per-request", "3")
    assert code == 0, output
    assert summary is not None
    assert summary["texts"] == 3 * summary["requests"] > 0
    assert (summary["mismatches"], summary["errors"], summary["exit_code"]) == (0, 0, 0)
    assert summary["tokens"] == 4 * summary["texts"]
    assert summary["texts_s"] > 0
    assert summary["p99_ms"] >= summary["p95_ms"] >= summary["p50_ms"] > 0
    assert "load test: objectives met, all answers agree with the expected ones" in output
    assert list(golden.parent.glob("*.part")) == []
    assert len(fake.requests[-1]["texts"]) == 3
    assert len(fake.requests) == summary["requests"] + 1  # the schema; nothing is asked twice


def test_wrong_answers_are_exit_code_1(fake: FakeTriton, golden: Path) -> None:
    """One wrong answer among right ones fails the run and is counted as a mismatch, not as an error."""
    fake.answer = lambda text: {**ANSWER, "token_count": 4 if text != "naïve" else 5}
    code, output, summary = run_locust(fake.url, golden)
    assert code == 1, output
    assert summary is not None
    assert summary["mismatches"] > 0
    assert summary["errors"] == 0
    assert summary["texts"] + summary["mismatches"] == summary["requests"]
    assert summary["foreign"] == 0
    assert "golden line 2: token_count 5, expected 4" in output
    assert "FAILED, missed mismatch_rate" in output


def test_failing_server_is_exit_code_1(fake: FakeTriton, golden: Path) -> None:
    """Requests that fail are errors, and a run without a right answer is not a success."""
    fake.answer = lambda text: b"no json"
    code, output, summary = run_locust(fake.url, golden)
    assert code == 1, output
    assert summary is not None
    assert summary["errors"] == summary["requests"] > 0
    assert summary["texts"] == 0


def test_bad_golden_is_exit_code_2(fake: FakeTriton, golden: Path) -> None:
    """A golden file that is damaged, missing, or from another model is refused before any user starts."""
    golden.write_text(golden.read_text() + "{\n")
    code, output, summary = run_locust(fake.url, golden)
    assert code == 2
    assert f"{golden}:4: is not JSON" in output
    assert summary is None
    row = {"text": "a", "scores": [0.5], "token_count": 1, "truncated": False}
    golden.write_text(json.dumps(row) + "\n")
    code, output, _ = run_locust(fake.url, golden)
    assert code == 2
    assert "has 1 scores per text, the served model 6" in output
    code, output, _ = run_locust(fake.url, None)
    assert code == 2
    assert "--golden PATH is required" in output
    assert all(request["outputs"] == ["SCHEMA"] for request in fake.requests)


def test_no_server_is_exit_code_2(golden: Path) -> None:
    """Without a server the run ends at once with a message."""
    code, output, summary = run_locust("127.0.0.1:1", golden)
    assert code == 2
    assert "no connection to http://127.0.0.1:1" in output
    assert summary is None


def test_bad_option_is_exit_code_2(fake: FakeTriton, golden: Path) -> None:
    """Options out of range are refused by name."""
    wrong = {"--texts-per-request": "1,65", "--tolerance": "nan", "--shape": "round", "--shape-steps": "1"}
    for option, value in wrong.items():
        code, output, _ = run_locust(fake.url, golden, option, value)
        assert code == 2
        assert option in output


def test_hanging_server_is_exit_code_1(fake: FakeTriton, golden: Path) -> None:
    """The run waits for requests that are in progress when the time is up, and they end as errors."""
    calls: list[str] = []

    def answer_then_hang(text: str) -> Any:
        calls.append(text)
        if len(calls) > 10:
            time.sleep(4)
        return ANSWER

    fake.answer = answer_then_hang
    code, output, summary = run_locust(fake.url, golden, "--request-timeout-s", "1.5")
    assert code == 1, output
    assert summary is not None
    assert summary["errors"] > 0


def test_other_heads_than_the_checkpoints_are_refused(fake: FakeTriton, golden: Path) -> None:
    """Labels and thresholds come from config.json beside the golden file; the server's must be the same."""
    config = golden.parent / "config.json"
    config.write_text(json.dumps({"polyhead": SCHEMA}), encoding="utf-8")
    assert run_locust(fake.url, golden)[0] == 0
    changed = json.loads(json.dumps(SCHEMA))
    changed["heads"][0]["labels"] = ["sport", "news", "science"]
    config.write_text(json.dumps({"polyhead": changed}), encoding="utf-8")
    code, output, _ = run_locust(fake.url, golden)
    assert code == 2
    assert f"heads differ from those in {config}" in output


def test_answers_that_belong_to_others_are_told_apart(fake: FakeTriton, golden: Path) -> None:
    """An answer that is right for another text is counted as that, and named."""
    other = [0.7, 0.2, 0.1, *SCORES[3:]]
    topic = {"kind": "single_label", "labels": ["news"], "scores": [0.7]}
    theirs = {**ANSWER, "heads": {**ANSWER["heads"], "topic": topic}}
    row = {"text": "their text", "scores": other, "token_count": 4, "truncated": False}
    golden.write_text(golden.read_text() + json.dumps(row) + "\n")
    fake.answer = lambda text: theirs if text in ("naïve", "their text") else ANSWER
    code, output, summary = run_locust(fake.url, golden)
    assert code == 1, output
    assert summary is not None
    assert summary["foreign"] == summary["mismatches"] > 0
    assert "golden line 2: is the answer to the text of golden line 4" in output


def test_mixed_requests(fake: FakeTriton, golden: Path) -> None:
    """Each request draws its number of texts from the mix, and locust's pages tell the sizes apart."""
    code, output, summary = run_locust(fake.url, golden, "--texts-per-request", "1,1,5")
    assert code == 0, output
    assert summary is not None
    sizes = [len(request["texts"]) for request in fake.requests[1:]]
    assert set(sizes) == {1, 5}
    assert sizes.count(1) > sizes.count(5)
    assert summary["texts"] == sum(sizes)
    assert "classify 5 texts" in output


def test_a_mapped_error_says_what_the_server_said(fake: FakeTriton, golden: Path) -> None:
    """A status of the server is an error with its message, by the client's tree; the run goes on."""
    fake.server.failures = [Failure(), Failure(503, "Request timeout expired"), Failure(broken=True)]
    code, output, summary = run_locust(fake.url, golden)
    assert code == 1, output
    assert summary is not None
    assert (summary["errors"], summary["refused"]) == (1, 1)
    assert summary["texts"] == summary["requests"] - 2 > 0
    assert "is overloaded (Request timeout expired)" in output
    assert "ServerUnreachableError" in output


def test_through_an_encrypted_door(
    fake: FakeTriton,
    golden: Path,
    certificate: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over https the server's certificate is checked, and the API key is sent."""
    with encrypted(certificate, fake.url) as url:
        code, output, _ = run_locust(f"https://{url}", golden)
        assert code == 2
        assert "certificate verify failed" in output
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        code, output, summary = run_locust(f"https://{url}", golden, "--api-key", "s3cret")
    assert code == 0, output
    assert summary is not None
    assert summary["texts"] > 0
    assert {asked.headers["authorization"] for asked in fake.server.requests} == {"Bearer s3cret"}


def test_open_arrivals_do_not_wait(fake: FakeTriton, golden: Path) -> None:
    """While the server hangs, requests keep arriving, and their latency counts from the time when they were due."""
    fake.server.failures = [Failure()] * 12 + [Failure(hang_s=1.0)] * 100
    code, output, summary = run_locust(
        fake.url, golden, "--shape", "open", "--rate", "40", "-u", "1", "-t", "2s", "--seed", "1"
    )
    assert code == 0, output
    assert summary is not None
    assert 40 < summary["requests"] < 130  # a closed user would get some twelve answers, and then two
    assert 900 < summary["p50_ms"] < 1500
    assert summary["late_p99_ms"] < 500
    assert summary["texts"] == summary["requests"] == len(fake.requests) - 1  # what was under way is waited for


def test_latency_includes_waiting_for_a_stalled_generator(fake: FakeTriton, golden: Path) -> None:
    """The latency of requests that started late, because the load generator was blocked, includes that delay."""
    stall = golden.parent / "stall.py"
    stall.write_text(
        "from loadtest.locustfile import *\n"
        "import gevent\n"
        "from locust import events\n"
        "from gevent.monkey import get_original\n"
        "@events.test_start.add_listener\n"
        "def stall(**_):\n"
        "    gevent.spawn_later(0.5, get_original('time', 'sleep'), 1.0)\n"
    )
    code, output, summary = run_locust(
        fake.url, golden, "-f", str(stall), "--shape", "open", "--rate", "50", "-u", "1", "-t", "2s"
    )
    assert code == 0, output
    assert summary is not None
    assert 800 < summary["late_p99_ms"] < 2000
    assert summary["p95_ms"] > 700
    assert "The load generator started 1 of 100 requests more than" in output


def test_objectives_decide(fake: FakeTriton, golden: Path) -> None:
    """The file's objectives decide the exit code and appear in the table; a wrong file is refused."""
    objectives = golden.parent / "objectives.toml"
    objectives.write_text("p95_ms = 1000\nmin_texts_s = 1\n")
    code, output, summary = run_locust(fake.url, golden, "--objectives", str(objectives))
    assert code == 0, output
    assert summary is not None
    assert [verdict["objective"] for verdict in summary["verdicts"]] == [
        "error_rate", "refused_rate", "mismatch_rate", "p95_ms", "min_texts_s",
    ]  # fmt: skip
    objectives.write_text("p95_ms = 0.0001\n")
    code, output, _ = run_locust(fake.url, golden, "--objectives", str(objectives))
    assert code == 1
    assert "FAILED, missed p95_ms" in output
    objectives.write_text("p95 = 1\n")
    code, output, _ = run_locust(fake.url, golden, "--objectives", str(objectives))
    assert code == 2
    assert "unknown key 'p95'; allowed are p50_ms" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_cut_short_is_exit_code_1(number: signal.Signals, fake: FakeTriton, golden: Path) -> None:
    """After Ctrl-C or SIGTERM there is a summary, which says that the run was cut short and not that it succeeded."""
    command, environment = locust_command(fake.url, golden, "-t", "60s")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 30
    while len(fake.requests) < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "load test: FAILED, cut short: stopped before its 60 s were over" in output
    assert "objectives met" not in output
    summary = json.loads((golden.parent / "summary.json").read_text())
    assert (summary["exit_code"], summary["errors"], summary["mismatches"]) == (1, 0, 0)
    assert (summary["planned_s"], summary["texts"] > 0) == (60.0, True)
    assert summary["cut_short"] == "stopped before its 60 s were over"


def test_users_pause_while_the_server_is_gone(fake: FakeTriton, golden: Path) -> None:
    """Users ask a server that is gone a few times per second, and the summary says for how long it was gone."""
    fake.server.failures = [Failure()] * 5 + [Failure(broken=True)] * 10_000
    code, output, summary = run_locust(fake.url, golden, "-t", "4s")
    assert code == 1, output
    assert summary is not None
    assert 0 < summary["errors"] < 60
    assert summary["without_server_s"] > 2
    assert "seconds without a server" in output


def test_arrivals_without_a_server_are_not_sent_but_counted(fake: FakeTriton, golden: Path) -> None:
    """Open arrivals that are due while the server is gone count as errors, although few of them are sent."""
    fake.server.failures = [Failure()] * 5 + [Failure(broken=True)] * 10_000
    code, output, summary = run_locust(
        fake.url, golden, "--shape", "open", "--rate", "100", "-u", "1", "-t", "4s", "--seed", "1"
    )
    assert code == 1, output
    assert summary is not None
    assert summary["errors"] > 200
    assert len(fake.server.requests) < 150
    assert "not sent, because the server had just been gone" in output


def test_users_wait_as_a_refusal_says(fake: FakeTriton, golden: Path) -> None:
    """A refused request is no error; its user sends the next one after the time that the server names."""
    fake.server.failures = [Failure()] + [Failure(503, "the queue is full; retry in 0.9 s")] * 10_000
    code, output, summary = run_locust(fake.url, golden, "-t", "4s")
    assert code == 1, output
    assert summary is not None
    assert summary["errors"] == 0
    assert 2 <= summary["refused"] == summary["requests"] <= 10
    assert summary["without_server_s"] == 0


def test_the_slow_share_has_its_limit(fake: FakeTriton, golden: Path) -> None:
    """--slow-ms sets from when on a request is slow, and slow_share how many may be."""
    fake.delay_s = 0.05
    objectives = golden.parent / "objectives.toml"
    objectives.write_text("slow_share = 0.5\nmax_ms = 5000\np999_ms = 5000\n")
    code, output, summary = run_locust(fake.url, golden, "--objectives", str(objectives))
    assert code == 0, output
    assert summary is not None
    assert (summary["slow_ms"], summary["slow_share"] < 0.5) == (300.0, True)
    assert summary["max_ms"] >= summary["p999_ms"] > 50
    code, output, summary = run_locust(fake.url, golden, "--objectives", str(objectives), "--slow-ms", "20")
    assert code == 1, output
    assert summary is not None
    assert (summary["slow_ms"], summary["slow_share"]) == (20.0, 1.0)
    assert "FAILED, missed slow_share" in output


def test_shapes_have_phases(fake: FakeTriton, golden: Path) -> None:
    """A shape is chosen by name, and its phases stand in summary and table with their users."""
    code, output, summary = run_locust(fake.url, golden, "--shape", "spike", "-u", "8", "-t", "7s")
    assert code == 0, output
    assert summary is not None
    assert [(phase["name"], phase["users"]) for phase in summary["phases"]] == [
        ("before", 2), ("spike", 8), ("after", 2),
    ]  # fmt: skip
    assert all(phase["texts_s"] > 0 for phase in summary["phases"])


def free_port() -> int:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def test_two_workers_add_up(fake: FakeTriton, golden: Path) -> None:
    """With a master and two workers every request is counted once, to the last one under way."""
    fake.delay_s = 1.2  # more than locust would wait for the last reports
    port = str(free_port())
    command, environment = locust_command(
        fake.url, golden, "-u", "4", "-t", "4s", "--master", "--expect-workers", "2", "--master-bind-port", port,
        "--master-bind-host", "127.0.0.1", "--texts-per-request", "2",
    )  # fmt: skip
    worker = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--worker", "--master-host", "127.0.0.1",
              "--master-port", port]  # fmt: skip
    started = [
        subprocess.Popen(one, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for one in (command, worker, worker)
    ]
    outputs = [one.communicate(timeout=60)[0] for one in started]
    assert [one.returncode for one in started] == [0, 0, 0], outputs
    summary = json.loads((golden.parent / "summary.json").read_text())
    asked = [request for request in fake.requests if request["outputs"] == ["PREDICTION"]]
    assert summary["requests"] == len(asked)
    assert summary["texts"] == 2 * len(asked)
    assert 8 <= summary["requests"] <= 20


def test_a_workers_mismatch_is_the_masters_exit_code(fake: FakeTriton, golden: Path) -> None:
    """With --processes, what a worker finds wrong fails the run; open arrivals keep their rate over all workers."""
    asked: list[str] = []

    def answer(text: str) -> Any:
        asked.append(text)
        return {**ANSWER, "token_count": 5} if len(asked) == 20 else ANSWER

    fake.answer = answer
    code, output, summary = run_locust(
        fake.url, golden, "--processes", "2", "-t", "4s", "--shape", "open", "--rate", "60", "-u", "4"
    )
    assert code == 1, output
    assert summary is not None
    assert summary["mismatches"] == 1
    assert summary["texts"] == summary["requests"] - 1 == len(asked) - 1
    assert 120 < summary["requests"] < 360
    assert "FAILED, missed mismatch_rate" in output


def test_reports_and_web_page(fake: FakeTriton, golden: Path) -> None:
    """Locust's web page, HTML report and CSV work; the page offers the shape and its options."""
    port, folder = free_port(), golden.parent
    arguments = ["--autostart", "--autoquit", "2", "--web-host", "127.0.0.1", "--web-port", str(port)]
    command, environment = locust_command(
        fake.url, golden, "-t", "2s", *arguments, "--html", str(folder / "report.html"), "--csv", str(folder / "csv")
    )
    command.remove("--headless")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    page = ""
    deadline = time.monotonic() + 20
    while not page and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()
        time.sleep(0.1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    for option in ("shape", "shape_steps", "rate", "texts_per_request"):
        assert f'"{option}"' in page
    assert "request_timeout_s" not in page
    assert "classify 1 text" in (folder / "report.html").read_text(encoding="utf-8")
    assert "classify 1 text" in (folder / "csv_stats.csv").read_text(encoding="utf-8")
    assert "all answers agree" in output
