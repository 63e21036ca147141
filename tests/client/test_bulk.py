"""Files scored by the command line: formats, bad rows, and jobs that are killed and go on."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from polyhead_client.bulk import answers, lines, sources
from polyhead_client.command import app
from polyhead_client.testing import Failure
from tests.client.fake_triton import ANSWER, FakeTriton

runner = CliRunner()
ADDED = {
    "topic_label": "sport", "topic_score": 0.7, "mood_labels": ["happy"], "mood_scores": [0.9], "stars_value": 3.25,
    "token_count": 4, "truncated": False,
}  # fmt: skip


@pytest.fixture
def score(fake: FakeTriton, tmp_path: Path) -> Callable[..., Any]:
    """Runs the command on two files of a folder."""

    def run(source: str, output: str, *options: str) -> Any:
        files = ["--input", str(tmp_path / source), "--output", str(tmp_path / output)]
        return runner.invoke(app, ["classify", "--server", fake.url, *files, *options])

    return run


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of any format."""
    match path.suffix:
        case ".jsonl":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        case ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
        case _:
            return pq.read_table(path).to_pylist()


def count_tokens(text: str) -> Any:
    """An answer by which a text is known again."""
    return ANSWER | {"token_count": int(text.split()[-1])}


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("source", ["in.csv", "in.jsonl", "in.parquet"])
def test_every_format_to_every_format(source: str, output: str, score: Callable[..., Any], tmp_path: Path) -> None:
    """All rows keep their columns and have the answers beside them; nothing else is left in the folder."""
    rows = [{"id": str(number), "review": f'naïve, "{number}"\nsecond line'} for number in range(3)]
    match source:
        case "in.csv":
            written = io.StringIO()
            writer = csv.DictWriter(written, ["id", "review"])
            writer.writeheader()
            writer.writerows(rows)
            (tmp_path / source).write_bytes(b"\xef\xbb\xbf" + written.getvalue().encode())
        case "in.jsonl":
            (tmp_path / source).write_text("\n\r\n".join(map(json.dumps, rows)), encoding="utf-8")
        case _:
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / source)
    result = score(source, output, "--text-column", "review")
    assert result.exit_code == 0, result.stderr
    assert "3 rows scored" in result.stderr
    assert result.stdout == ""
    added: dict[str, Any] = ADDED
    if output == "out.csv":
        added = {key: value if isinstance(value, str) else json.dumps(value) for key, value in ADDED.items()}
    assert read(tmp_path / output) == [row | added for row in rows]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source, output])


def test_parquet_keeps_its_types(score: Callable[..., Any], tmp_path: Path) -> None:
    """Types, nulls, metadata and lists of the input come through; JSON lines have them as text where they must."""
    when = datetime(2024, 2, 3, tzinfo=UTC)
    table = pa.table({
        "text": pa.array(["one", "two"]).dictionary_encode(),
        "when": pa.array([when, None], pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(5, 2)),
        "raw": pa.array([b"\xff", None]),
        "tags": pa.array([["a"], []]),
    }).replace_schema_metadata({"owner": "team"})  # fmt: skip
    pq.write_table(table, tmp_path / "in.parquet")
    assert score("in.parquet", "out.parquet").exit_code == 0
    scored = pq.read_table(tmp_path / "out.parquet")
    assert scored.select(table.column_names).equals(table)
    assert scored.schema.metadata[b"owner"] == b"team"
    assert scored.schema.field("mood_scores").type == pa.list_(pa.float64())
    assert score("in.parquet", "out.jsonl").exit_code == 0
    first = read(tmp_path / "out.jsonl")[0]
    assert (first["when"], first["price"], first["raw"]) == ("2024-02-03 00:00:00+00:00", "1.50", "/w==")


def test_top_k_adds_lists(fake: FakeTriton, score: Callable[..., Any], tmp_path: Path) -> None:
    """With --top-k a single_label head has its best few beside the best one; a prefix names all new columns."""
    (tmp_path / "in.jsonl").write_text('{"text": "a", "topic_label": "old"}\n', encoding="utf-8")
    assert score("in.jsonl", "out.jsonl", "--top-k", "2", "--threshold", "0.3", "--prefix", "new_").exit_code == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["topic_label"], row["new_topic_label"], row["new_topic_labels"]) == ("old", "sport", ["sport"])
    assert fake.requests[-1]["parameters"] == {"top_k": 2, "threshold": 0.3}


BAD_JSON = [
    (b'{"text": "good"}', None),
    (b'{"text": null}', "is missing"),
    (b'{"text": 5}', "must be a str, got int"),
    (b'{"other": "x"}', "no field 'text'"),
    (b'{"text": "\\ud800"}', "lone surrogate"),
    (b'{"text": "\xff"}', "not UTF-8: byte 0xff"),
    (b'{"text": "open', "not JSON"),
    (b'["text"]', "must be a JSON object, got list"),
    (b'{"text": "x", "n": NaN}', "NaN is no JSON number"),
    (b"[" * 100_000, "not JSON"),
    (b'{"text": "  "}', "empty or blank"),
    (b'{"text": "x", "truncated": 1}', "has a field 'truncated'"),
    (b'{"text": "refuse me"}', "rejected the request"),
    (b'{"text": "fine", "late": 1}', None),
]


def test_bad_json_rows_go_aside(fake: FakeTriton, score: Callable[..., Any], tmp_path: Path) -> None:
    """Each bad line has its reason, row and line in the side file; the good ones are scored; exit code 1."""
    reply = fake.server.reply

    def picky(request: Any, failure: Failure) -> Any:
        return reply(request, Failure(413, "too large") if b"refuse me" in request.body else failure)

    fake.server.reply = picky
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(line for line, _ in BAD_JSON))
    for output in ("out.jsonl", "out.csv", "out.parquet"):
        result = score("in.jsonl", output)
        assert result.exit_code == 1, result.stderr
        assert "2 rows scored" in result.stderr
        assert [row["text"] for row in read(tmp_path / output)] == ["good", "fine"]
        aside = read(tmp_path / "out.errors.jsonl")
        expected = [(place, words) for place, (_, words) in enumerate(BAD_JSON, start=1) if words]
        assert [(one["row"], one["line"]) for one in aside] == [(place, place) for place, _ in expected]
        for one, (_, words) in zip(aside, expected, strict=True):
            assert words in one["reason"]
        assert aside[1]["input"] == {"text": 5}


def test_bad_csv_rows_go_aside(score: Callable[..., Any], tmp_path: Path) -> None:
    """Wrong numbers of fields, stray quotes, bytes that are not UTF-8 and open quotes spoil their own row only."""
    good = b'1,"a ""quoted"", long\r\ntext"\r\n'
    bad = b'2\r\n3,b,c\r\n4,"d"e\r\n5,\xfff\r\n6,\r\n\r\n'
    (tmp_path / "in.csv").write_bytes(b"id,text\r\n" + good + bad + b'7,good\r\n8,"open\r\nend')
    assert score("in.csv", "out.csv").exit_code == 1
    rows = read(tmp_path / "out.csv")
    assert [(row["id"], row["text"]) for row in rows] == [("1", 'a "quoted", long\r\ntext'), ("7", "good")]
    found = [(one["row"], one["line"], one["reason"]) for one in read(tmp_path / "out.errors.jsonl")]
    assert found == [
        (2, 4, "1 fields, where the header has 2"),
        (3, 5, "3 fields, where the header has 2"),
        (4, 6, "not CSV: ',' expected after '\"'"),
        (5, 7, "column 'text' is not UTF-8: byte 0xff"),
        (6, 8, "the text is empty or blank"),
        (8, 11, "not CSV: unexpected end of data; the row reaches to line 12"),
    ]


def test_bad_parquet_rows_go_aside(score: Callable[..., Any], tmp_path: Path) -> None:
    """Nulls and bytes that are not UTF-8 are reasons too, and the next clean run takes the side file away."""
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"ok"]).buffers())
    texts = pa.chunked_array([pa.array(["good", None]), broken])
    pq.write_table(pa.table({"text": texts, "id": [1, 2, 3, 4]}), tmp_path / "in.parquet")
    assert score("in.parquet", "out.parquet").exit_code == 1
    assert [row["id"] for row in read(tmp_path / "out.parquet")] == [1, 4]
    missing, spoiled = read(tmp_path / "out.errors.jsonl")
    assert (missing["row"], missing["input"]) == (2, {"text": None, "id": 2})
    assert (spoiled["row"], spoiled["reason"]) == (3, "the text is not UTF-8")
    pq.write_table(pa.table({"text": ["good"]}), tmp_path / "in.parquet")
    assert score("in.parquet", "out.parquet", "--restart").exit_code == 0
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_json_types_meet_in_parquet(score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields that come late, change from whole to broken numbers, or have no common type, fit one Parquet schema."""
    monkeypatch.setattr(sources, "BLOCK_ROWS", 2)
    rows = [{"text": "a", "n": 1, "x": 1}, {"text": "b", "deep": {"k": [1]}}, {"text": "c", "n": 2.5, "x": "y"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = score("in.jsonl", "out.parquet")
    assert result.exit_code == 0, result.stderr
    found = [(row["n"], row["x"], row["deep"]) for row in read(tmp_path / "out.parquet")]
    assert found == [(1.0, "1", None), (None, None, {"k": [1]}), (2.5, '"y"', None)]


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("in.csv", b"id,review\n", [], "no column 'text'; name one of ['id', 'review']"),
        ("in.csv", b"", [], "no column 'text'"),
        ("in.csv", b"text,text\n", [], "names a column twice"),
        ("in.csv", b"text,\xff\n", [], "header cannot be read"),
        ("in.csv", b"text,token_count\n", [], "already has a column 'token_count'"),
        ("in.parquet", b"PAR?", [], "not a Parquet file"),
        ("in.txt", b"text", [], "must end in one of"),
        ("none.csv", None, [], "none.csv"),
        ("out.csv", b"text\n", [], "is the input"),
        ("out.errors.jsonl", b"{}", [], "is the input"),
        ("in.csv", b"text\na\n", ["--model", "x", "--server", "127.0.0.1:1"], "no connection"),
    ],
)
def test_what_cannot_be_begun(
    name: str, content: bytes | None, options: list[str], words: str, score: Callable[..., Any], tmp_path: Path
) -> None:
    """Bad files and names give exit code 2 and a sentence, before anything is written."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if "--server" in options:
        files = ["--input", str(tmp_path / name), "--output", str(tmp_path / "out.csv")]
        result = runner.invoke(app, ["classify", *files, *options])
    else:
        result = score(name, "out.csv", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ([name] if content is not None else [])


def test_output_is_not_overwritten(score: Callable[..., Any], tmp_path: Path) -> None:
    """An output that is there stays, unless --restart says otherwise."""
    (tmp_path / "in.csv").write_text("text\na\n", encoding="utf-8")
    (tmp_path / "out.csv").write_text("mine", encoding="utf-8")
    result = score("in.csv", "out.csv")
    assert result.exit_code == 2
    assert "--restart" in result.stderr
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == "mine"
    assert score("in.csv", "out.csv", "--restart").exit_code == 0
    assert read(tmp_path / "out.csv")[0]["topic_label"] == "sport"


def test_failing_server_leaves_a_journal_that_goes_on(
    fake: FakeTriton, score: Callable[..., Any], tmp_path: Path
) -> None:
    """A server that fails midway gives exit code 2 and no output; the same command asks for the rest alone."""
    fake.answer = count_tokens
    (tmp_path / "in.csv").write_text("text\n" + "".join(f"row {n}\n" for n in range(100)), encoding="utf-8")
    options = ["--batch-size", "10", "--workers", "1"]
    reply = fake.server.reply
    fake.server.reply = lambda request, failure: reply(
        request, Failure(500, "out of memory") if b"row 60" in request.body else failure
    )
    result = score("in.csv", "out.csv", *options)
    assert result.exit_code == 2
    assert "out of memory" in result.stderr
    assert "the same command goes on" in result.stderr
    assert not (tmp_path / "out.csv").exists()
    fake.server.reply = reply
    fake.server.requests.clear()
    result = score("in.csv", "out.csv", *options)
    assert result.exit_code == 0
    assert "60 rows by an earlier run" in result.stderr
    texts = [text for request in fake.requests if request["outputs"] == ["PREDICTION"] for text in request["texts"]]
    assert texts == [f"row {number}" for number in range(60, 100)]
    assert [row["token_count"] for row in read(tmp_path / "out.csv")] == [str(number) for number in range(100)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--top-k", "2"], "top_k differs"),
        (["--text-column", "id"], "text column differs"),
        (["--threshold", "0.5"], "threshold differs"),
        (["--model-version", "2"], "model version differs"),
        (["input"], "input differs"),
        (["heads"], "model's heads differs"),
    ],
)
def test_another_job_is_refused(
    change: list[str], words: str, fake: FakeTriton, score: Callable[..., Any], tmp_path: Path
) -> None:
    """A journal is gone on with only if input, options and the model's heads are the same; --restart begins anew."""
    (tmp_path / "in.csv").write_text("text,id\na,1\nb,2\n", encoding="utf-8")
    reply = fake.server.reply
    fake.server.reply = lambda request, failure: reply(
        request, Failure(500, "down") if b"PREDICTION" in request.body else failure
    )
    assert score("in.csv", "out.csv").exit_code == 2
    fake.server.reply = reply
    options = change if change[0].startswith("--") else []
    if change == ["input"]:
        (tmp_path / "in.csv").write_text("text,id\nc,1\nb,2\n", encoding="utf-8")
    elif change == ["heads"]:
        fake.server.heads = fake.server.heads[:2]
    result = score("in.csv", "out.csv", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    result = score("in.csv", "out.csv", *options, "--restart")
    assert result.exit_code == 0, result.stderr
    assert len(read(tmp_path / "out.csv")) == 2


@pytest.mark.parametrize("output", ["out.parquet", "out.csv"])
def test_killed_job_goes_on(output: str, fake: FakeTriton, score: Callable[..., Any], tmp_path: Path) -> None:
    """Killed with SIGKILL midway, twice, and run again, a job ends with an unbroken one's rows, each once."""
    total = 3000
    fake.answer = count_tokens
    lines = [f'{{"text": "row {n}", "id": {n}}}' if n % 7 else '{"text": null}' for n in range(total)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert score("in.jsonl", "whole_" + output).exit_code == 1
    fake.server.requests.clear()
    fake.delay_s = 0.02
    command = [sys.executable, "-m", "polyhead_client.cli", "classify", "--server", fake.url, "--batch-size", "16",
               "--workers", "2", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / output)]  # fmt: skip
    log = tmp_path / (output + ".partial") / "answers.jsonl"
    for share in (0.2, 0.5):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_bytes().count(b"\n") > share * total):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / output).exists()
    with log.open("ab") as torn:
        torn.write(b'{"heads": {"topic"')  # as a kill between two writes leaves it
    fake.delay_s = 0.0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "by an earlier run" in done.stderr
    assert read(tmp_path / output) == read(tmp_path / ("whole_" + output))
    aside = (tmp_path / "out.errors.jsonl").read_text(encoding="utf-8")
    assert aside == (tmp_path / "whole_out.errors.jsonl").read_text(encoding="utf-8")
    asked = sum(len(request["texts"]) for request in fake.requests if request["outputs"] == ["PREDICTION"])
    assert asked < 1.5 * total, "what was answered before a kill was asked again"
    assert not log.parent.exists()


def test_two_processes_do_not_share_a_journal(fake: FakeTriton, score: Callable[..., Any], tmp_path: Path) -> None:
    """While one process works on an output, another is told so."""
    (tmp_path / "in.csv").write_text("text\na\n", encoding="utf-8")
    fake.answer = count_tokens
    second: list[Any] = []

    def answer(text: str) -> Any:
        if not second and text == "a":
            second.append(None)
            files = ["--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv")]
            command = [sys.executable, "-m", "polyhead_client.cli", "classify", "--server", fake.url, *files]
            second[0] = subprocess.run(command, capture_output=True, text=True, check=False)
        return ANSWER

    fake.answer = answer
    assert score("in.csv", "out.csv").exit_code == 0
    assert second[0].returncode == 2
    assert "another process works on" in second[0].stderr


def test_input_changed_meanwhile(fake: FakeTriton, score: Callable[..., Any], tmp_path: Path) -> None:
    """An input that grows while it is scored is noticed, and nothing is written at the output's name."""
    (tmp_path / "in.csv").write_text("text\na\n", encoding="utf-8")

    def answer(text: str) -> Any:
        if text == "a":
            (tmp_path / "in.csv").write_text("text\na\nb\n", encoding="utf-8")
        return ANSWER

    fake.answer = answer
    result = score("in.csv", "out.csv")
    assert result.exit_code == 2
    assert "was changed" in result.stderr
    assert not (tmp_path / "out.csv").exists()


def test_many_bad_rows_do_not_pile_up(
    fake: FakeTriton, score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where bad rows come in thousands, the answers before them are waited for, and all rows keep their order."""
    monkeypatch.setattr(answers, "MOST_SPOILED", 10)
    fake.answer = count_tokens
    texts = [f"row {n}" if n % 40 == 0 else None for n in range(200)]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    assert score("in.jsonl", "out.jsonl").exit_code == 1
    assert [row["token_count"] for row in read(tmp_path / "out.jsonl")] == [0, 40, 80, 120, 160]
    expected = [n + 1 for n in range(200) if n % 40]
    assert [row["row"] for row in read(tmp_path / "out.errors.jsonl")] == expected


def test_rejected_key_is_not_a_bad_row(fake: FakeTriton, score: Callable[..., Any], tmp_path: Path) -> None:
    """Where the server rejects every text, the job stops instead of calling all rows bad."""
    (tmp_path / "in.csv").write_text("text\na\n", encoding="utf-8")
    reply = fake.server.reply
    for status in (401, 400):
        failure = Failure(status, "no")
        fake.server.reply = lambda request, _, failure=failure: reply(
            request, failure if b"PREDICTION" in request.body else Failure()
        )
        assert score("in.csv", "out.csv").exit_code == 2


def test_lines_longer_than_the_limit() -> None:
    """Of a line that is too long no more than the limit is held, and the next one is read."""
    read_lines = lines.Lines(io.BytesIO(b"short\n" + b"x" * 50 + b"\nnext\n" + b"y" * 50), longest=10)
    assert next(read_lines) == b"short\n"
    with pytest.raises(lines.LongLineError):
        next(read_lines)
    assert next(read_lines) == b"next\n"
    with pytest.raises(lines.LongLineError):
        next(read_lines)
    assert list(read_lines) == []
    assert (read_lines.number, read_lines.offset) == (4, 6 + 51 + 5 + 50)


def test_progress_lines(
    fake: FakeTriton, score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off a terminal progress is plain lines with share, rows, rate and time left; --quiet says nothing."""
    monkeypatch.setattr("polyhead_client.bulk.progress._Lines.every_s", 0.0)
    (tmp_path / "in.csv").write_text("text\n" + "a\n" * 50, encoding="utf-8")
    result = score("in.csv", "out.csv")
    for step in ("scoring", "writing"):
        halfway = next(line for line in result.stderr.splitlines() if line.startswith(step) and " 25 rows" in line)
        assert halfway.startswith(f"{step}, 5")
        assert "rows/s" in halfway
        assert halfway.endswith("left")
    assert score("in.csv", "out.csv", "--quiet", "--restart").stderr == ""


def test_progress_bar_on_a_terminal(
    fake: FakeTriton, tmp_path: Path, score: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal one bar shows share, rows, rate and time left, and ends full."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "in.csv").write_text("text\n" + "a\n" * 50, encoding="utf-8")
    result = score("in.csv", "out.csv")
    assert result.exit_code == 0
    assert "100%" in result.stderr
    assert "50 rows" in result.stderr
    assert "0:00 left" in result.stderr


def test_ctrl_c_leaves_a_journal(fake: FakeTriton, tmp_path: Path) -> None:
    """Ctrl-C ends a job with exit code 130, no traceback, and the way to go on."""
    (tmp_path / "in.csv").write_text("text\n" + "a\n" * 3000, encoding="utf-8")
    fake.delay_s = 0.05
    command = [sys.executable, "-m", "polyhead_client.cli", "classify", "--server", fake.url, "--batch-size", "8",
               "--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv")]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(fake.requests) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-2:] == [
        f"what is done is in {tmp_path / 'out.csv.partial'}; the same command goes on from there",
        "polyhead-client: stopped",
    ]
    assert (tmp_path / "out.csv.partial" / "answers.jsonl").read_bytes().count(b"\n") >= 8


def test_a_closed_pipe_is_quiet(fake: FakeTriton) -> None:
    """`… --json | head` prints no traceback."""
    command = f"yes a | head -n 500 | {sys.executable} -m polyhead_client.cli classify --json --server {fake.url}"
    run = subprocess.run(["bash", "-c", f"{command} | head -n 1"], capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) == 1
    assert run.stderr == ""
