"""Files scored by the command, with a fake server: formats in and out, bad rows, and what cannot begin."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.scoring.conftest import Served
from tests.scoring.texts import read_rows, write_jsonl

ADDED = {
    "topic_label": "sport", "topic_score": 1.0, "mood_labels": ["happy"], "mood_scores": [1.0], "stars_value": 0.0,
    "token_count": 4, "truncated": False, "error": None,
}  # fmt: skip


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl", "out.parquet", "out.jsonl.gz", "out"])
@pytest.mark.parametrize("source", ["in.csv", "in.jsonl", "in.parquet"])
def test_every_format_to_every_format(source: str, output: str, score: Callable[..., Any], tmp_path: Path) -> None:
    """All rows keep their columns, in order, and have the answers beside them; only the manifest is left beside."""
    rows = [{"id": str(number), "review": f'naïve, "{number}"\nsecond line'} for number in range(3)]
    match source:
        case "in.csv":
            lines = ['"naïve, ""{}""\nsecond line"'.format(row["id"]) for row in rows]
            text = "id,review\r\n" + "".join(f"{row['id']},{line}\r\n" for row, line in zip(rows, lines, strict=True))
            (tmp_path / source).write_bytes(b"\xef\xbb\xbf" + text.encode())
        case "in.jsonl":
            (tmp_path / source).write_text("\n\r\n".join(map(json.dumps, rows)), encoding="utf-8")
        case _:
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / source)
    result = score(source, output, "--text-column", "review", "--partition-tokens", "1")
    assert result.exit_code == 0, result.stderr
    assert "3 rows" in result.stdout
    added: dict[str, Any] = ADDED
    if output == "out.csv":
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in ADDED.items()}
        added = texts | {"error": ""}
    assert read_rows(tmp_path / output) == [row | added for row in rows]
    beside = [source, output] + ([] if output == "out" else [f"{output}.manifest.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(beside)
    again = score(source, output, "--text-column", "review", "--partition-tokens", "1")
    assert (again.exit_code, "is finished already" in again.stderr) == (0, True)


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
    assert score("in.parquet", "out.parquet", "--partition-tokens", "1").exit_code == 0
    scored = pq.read_table(tmp_path / "out.parquet")
    assert scored.select(table.column_names).equals(table)
    assert scored.schema.metadata[b"owner"] == b"team"
    assert score("in.parquet", "out.jsonl").exit_code == 0
    first = read_rows(tmp_path / "out.jsonl")[0]
    assert (first["when"], first["price"], first["raw"]) == ("2024-02-03 00:00:00+00:00", "1.50", "/w==")


def test_json_types_meet_in_parquet(score: Callable[..., Any], tmp_path: Path) -> None:
    """Fields that come late, change from whole to broken numbers, or have no common type, fit one Parquet schema."""
    rows = [{"text": "a", "n": 1, "x": 1}, {"text": "b", "deep": {"k": [1]}}, {"text": "c", "n": 2.5, "x": "y"}]
    write_jsonl(tmp_path / "in.jsonl", rows)
    assert score("in.jsonl", "out.parquet", "--partition-tokens", "1").exit_code == 0
    found = [(row["n"], row["x"], row["deep"]) for row in read_rows(tmp_path / "out.parquet")]
    assert found == [(1.0, "1", None), (None, None, '{"k": [1]}'), (2.5, "y", None)]


def test_several_files_and_options(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """A glob of files without a header is one output; options reach the server, --keep and --prefix the columns."""
    (tmp_path / "a.csv").write_text("1;row 1\n2;row 2\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("3;row 3\n", encoding="utf-8")
    read = ["--no-header", "--columns", "id,text", "--delimiter", ";"]
    ask = ["--top-k", "2", "--threshold", "0.3", "--prefix", "new_", "--keep", "id"]
    assert score("*.csv", "out.jsonl", *read, *ask).exit_code == 0
    rows = read_rows(tmp_path / "out.jsonl")
    assert [(row["id"], row["new_stars_value"]) for row in rows] == [("1", 1.0), ("2", 2.0), ("3", 3.0)]
    assert rows[0]["new_topic_labels"][0] == rows[0]["new_topic_label"] == "sport"
    assert "text" not in rows[0]
    assert fake.server.requests[1].parameters == {"top_k": 2, "threshold": 0.3}


def test_private_texts_are_marked(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """With --private the server's answer log leaves the texts out."""
    (tmp_path / "in.jsonl").write_text('{"text": "a goal"}\n')
    assert score("in.jsonl", "out.jsonl", "--private").exit_code == 0
    assert {"private": True} in [asked.parameters for asked in fake.server.requests]


@pytest.mark.parametrize(("output", "missing"), [("out.jsonl", None), ("out.csv", ""), ("out.parquet", None)])
def test_rejected_answers_are_counted(
    output: str, missing: str | None, fake: Served, score: Callable[..., Any], tmp_path: Path
) -> None:
    """Their label is null or empty and their score is there; the command and the manifest say how many they are."""
    fake.server.answer = lambda text: {"topic": {"sport": 0.75 if "goal" in text else 0.5, "news": 0.25}}
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in ("a goal", "rain", "snow")))
    result = score("in.jsonl", output, "--reject-below", "0.6")
    assert "3 rows" in result.output
    assert result.output.rstrip().endswith("; topic: 2 rejected")
    rows = read_rows(tmp_path / output)
    assert [row["topic_label"] for row in rows] == ["sport", missing, missing]
    assert [float(row["topic_score"]) for row in rows] == [0.75, 0.5, 0.5]
    manifest = json.loads((tmp_path / f"{output}.manifest.json").read_text(encoding="utf-8"))
    assert manifest["rejected"] == {"topic": 2}
    assert {"reject_below": 0.6} in [asked.parameters for asked in fake.server.requests]


BAD_JSON = [
    (b'{"text": "good"}', None),
    (b'{"text": null}', "is null"),
    (b'{"text": 5}', "must be a string, got a number"),
    (b'{"other": "x"}', "no column 'text'"),
    (b'{"text": "\\ud800"}', "surrogate"),
    (b'{"text": "\xff"}', "UTF-8"),
    (b'{"text": "open', "not JSON"),
    (b'["text"]', "object"),
    (b"[" * 100_000, "nested"),
    (b'{"text": "  "}', "empty or blank"),
    (b'{"text": "fine", "late": 1}', None),
]


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet", "out"])
def test_bad_json_rows_go_aside(score: Callable[..., Any], output: str, tmp_path: Path) -> None:
    """Each bad line keeps its place in the output, with its reason; the side file has row, line and source too."""
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(line for line, _ in BAD_JSON))
    result = score("in.jsonl", output, "--partition-tokens", "2")
    assert result.exit_code == 1, result.stderr
    assert "11 rows" in result.stdout
    assert "9 of them with an error" in result.stdout
    rows = read_rows(tmp_path / output)
    assert [bool(row["error"]) for row in rows] == [words is not None for _, words in BAD_JSON]
    beside = tmp_path / "out" / "_errors.jsonl" if output == "out" else tmp_path / f"{output}.errors.jsonl"
    aside = [json.loads(line) for line in beside.read_text(encoding="utf-8").splitlines()]
    expected = [(place, words) for place, (_, words) in enumerate(BAD_JSON, start=1) if words]
    assert [(one["row"], one["line"]) for one in aside] == [(place, place) for place, _ in expected]
    for one, (place, words) in zip(aside, expected, strict=True):
        assert words in one["reason"] == rows[place - 1]["error"]
        assert one["file"] == str(tmp_path / "in.jsonl")
    assert aside[1]["input"] == {"text": 5}
    assert aside[5]["raw"] == '{"text": "open'
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "good"}\n')
    assert score("in.jsonl", output, "--restart").exit_code == 0
    assert not beside.exists()


def test_bad_csv_rows_go_aside(score: Callable[..., Any], tmp_path: Path) -> None:
    """Wrong numbers of cells, bytes that are not UTF-8 and open quotes cost their own row only."""
    good = b'1,"a ""quoted"", long\r\ntext"\r\n'
    bad = b"2\r\n3,b,c\r\n5,\xfff\r\n6,\r\n\r\n"
    (tmp_path / "in.csv").write_bytes(b"id,text\r\n" + good + bad + b'7,good\r\n8,"open\r\nend')
    assert score("in.csv", "out.csv").exit_code == 1
    rows = read_rows(tmp_path / "out.csv")
    assert [(row["id"], row["text"]) for row in rows if not row["error"]][:2] == [
        ("1", 'a "quoted", long\r\ntext'), ("7", "good"),
    ]  # fmt: skip
    aside = read_rows(tmp_path / "out.csv.errors.jsonl")
    assert [one["line"] for one in aside[:4]] == [4, 5, 6, 7]


def test_bad_parquet_rows_go_aside(score: Callable[..., Any], tmp_path: Path) -> None:
    """Nulls and bytes that are not UTF-8 are reasons too."""
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"ok"]).buffers())
    texts = pa.chunked_array([pa.array(["good", None]), broken])
    pq.write_table(pa.table({"text": texts, "id": [1, 2, 3, 4]}), tmp_path / "in.parquet")
    assert score("in.parquet", "out.parquet").exit_code == 1
    found = pq.read_table(tmp_path / "out.parquet", columns=["id", "error"]).to_pylist()
    assert [row["id"] for row in found if row["error"] is None] == [1, 4]
    missing, not_utf8 = read_rows(tmp_path / "out.parquet.errors.jsonl")
    assert (missing["row"], missing["input"]) == (2, {"text": None, "id": 2})
    assert (not_utf8["row"], "not UTF-8" in not_utf8["reason"]) == (3, True)


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("in.csv", b"id,review\n1,a\n", [], "no column 'text'; it has 'id', 'review'"),
        ("in.csv", b"", [], "in.csv: is empty; the first line must name the columns"),
        ("in.csv", b"text,text\na,b\n", [], "several columns are named 'text'"),
        ("in.csv", b"text,token_count\na,1\n", [], "already has a column 'token_count'"),
        ("in.parquet", b"PAR?", [], "in.parquet"),
        ("in.xlsx", b"text", [], "save its sheet as CSV"),
        ("none.csv", None, [], "no such file"),
        ("in.csv", b"text\na\n", ["--columns", "a,b"], "columns is for files without a header"),
        ("in.csv", b"text\na\n", ["--header", "no colon"], "--header must be NAME:VALUE"),
    ],
)
def test_what_cannot_begin(
    name: str, content: bytes | None, options: list[str], words: str, score: Callable[..., Any], tmp_path: Path
) -> None:
    """Bad files and names give exit code 2 and a sentence, and nothing is left in the folder."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for output in ("out.csv", "out"):
        result = score(name, output, *options)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ([name] if content is not None else [])


def test_output_is_not_overwritten(score: Callable[..., Any], tmp_path: Path) -> None:
    """A file that is there stays, unless --restart says otherwise."""
    (tmp_path / "in.csv").write_text("text\na\n", encoding="utf-8")
    (tmp_path / "out.csv").write_text("mine", encoding="utf-8")
    result = score("in.csv", "out.csv")
    assert result.exit_code == 2
    assert "--restart" in result.stderr
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == "mine"
    assert score("in.csv", "out.csv", "--restart").exit_code == 0
    assert read_rows(tmp_path / "out.csv")[0]["topic_label"] == "sport"


def test_the_input_is_never_an_output(score: Callable[..., Any], tmp_path: Path) -> None:
    """A file that the run would write to is no input, also with --restart and by a link."""
    for name in ("in.csv", "in.csv.errors.jsonl", "in.csv.manifest.json"):
        (tmp_path / name).write_text('{"text": "a"}\n', encoding="utf-8")
        result = score(name, "in.csv", "--restart")
        assert result.exit_code == 2
        wanted = "name another output" if name.endswith("manifest.json") else "give the output another name"
        assert wanted in result.stderr
    (tmp_path / "in.csv.manifest.json").unlink()
    (tmp_path / "link.csv").symlink_to("in.csv")
    assert "give the output another name" in score("link.csv", "in.csv", "--restart").stderr


@pytest.mark.parametrize("output", ["in/scored.csv", "in/scored"])
def test_the_output_is_in_the_inputs_folder(output: str, score: Callable[..., Any], tmp_path: Path) -> None:
    """What the run itself writes there is no input, also when it continues."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("text\nrow 1\n", encoding="utf-8")
    assert score("in", output).exit_code == 0
    again = score("in", output)
    assert (again.exit_code, "is finished already" in again.stderr) == (0, True)
    assert score("in", output, "--restart").exit_code == 0
    assert len(read_rows(tmp_path / output)) == 1


@pytest.mark.parametrize("name", ["out.csv.partial", "out.csv.partial/notes.txt", "out.csv.manifest.json"])
def test_files_of_others_stay(name: str, score: Callable[..., Any], tmp_path: Path) -> None:
    """A file that has a name of the run's own and is not its own is refused and kept."""
    (tmp_path / "in.csv").write_text("text\nrow 1\n", encoding="utf-8")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    result = score("in.csv", "out.csv")
    assert result.exit_code == 2
    assert "is not of a scoring run" in result.stderr
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("out", ["out/_manifest.json", "out/part-0.parquet"]),
        ("out.csv", ["out.csv", "out.csv.manifest.json", "out.csv.errors.jsonl"]),
    ],
)
def test_restart_removes_only_what_runs_wrote(
    output: str, names: list[str], score: Callable[..., Any], tmp_path: Path
) -> None:
    """Other programs write files named ``_manifest.json`` and ``part-…``, too."""
    (tmp_path / "in.csv").write_text("text\nrow 1\n", encoding="utf-8")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"mine": 1}', encoding="utf-8")
    result = score("in.csv", output, "--restart")
    assert (result.exit_code, "is not of a scoring run" in result.stderr) == (2, True)
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in names] == ['{"mine": 1}'] * len(names)


def test_anothers_list_of_errors_is_kept(score: Callable[..., Any], tmp_path: Path) -> None:
    """A fresh output does not replace a file that is named as its list of errors."""
    (tmp_path / "in.csv").write_text("text\nrow 1\n", encoding="utf-8")
    (tmp_path / "out.csv.errors.jsonl").write_text("mine", encoding="utf-8")
    result = score("in.csv", "out.csv")
    assert (result.exit_code, "out.csv.errors.jsonl: exists already" in result.stderr) == (2, True)
    assert (tmp_path / "out.csv.errors.jsonl").read_text(encoding="utf-8") == "mine"


def test_a_lost_part_is_noticed(score: Callable[..., Any], tmp_path: Path) -> None:
    """A finished folder that lacks a part is not called finished."""
    (tmp_path / "in.csv").write_text("text\nrow 1\n", encoding="utf-8")
    assert score("in.csv", "out").exit_code == 0
    (tmp_path / "out" / "part-000000.parquet").unlink()
    result = score("in.csv", "out")
    assert (result.exit_code, "was changed after it was scored" in result.stderr) == (2, True)
    assert score("in.csv", "out", "--restart").exit_code == 0
    assert len(read_rows(tmp_path / "out")) == 1


def test_a_slash_makes_a_folder(fake: Served, tmp_path: Path) -> None:
    """Whatever the name looks like."""
    (tmp_path / "in.csv").write_text("text\nrow 1\n", encoding="utf-8")
    command = [sys.executable, "-m", "polyhead_scoring.command", "in.csv", "--output", "out.csv/", "--server", fake.url]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert len(read_rows(tmp_path / "out.csv")) == 1
    assert (tmp_path / "out.csv").is_dir()


def test_a_pipe_is_refused(score: Callable[..., Any], tmp_path: Path) -> None:
    """It cannot be read twice, so the message says how standard input does the same."""
    os.mkfifo(tmp_path / "in.csv")
    result = score("in.csv", "out.csv")
    assert result.exit_code == 2
    assert "pipe it into polyhead-score -" in result.stderr


def test_infinite_numbers_of_failed_rows(score: Callable[..., Any], tmp_path: Path) -> None:
    """JSON has no NaN, so the file of failed rows has it as text."""
    pq.write_table(pa.table({"text": pa.array([None], pa.string()), "x": [float("nan")]}), tmp_path / "in.parquet")
    assert score("in.parquet", "out.csv").exit_code == 1
    assert read_rows(tmp_path / "out.csv.errors.jsonl")[0]["input"] == {"text": None, "x": "nan"}


def test_a_full_disk(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """It ends the run with one line; with room, the same command goes on; --keep may name a column twice."""
    rows = [{"text": f"row {number}", "more": "x" * 500} for number in range(500)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    command = ["bash", "-c", "ulimit -f 100; exec \"$@\"", "-", sys.executable, "-m", "polyhead_scoring.command",
               str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.csv"), "--server", fake.url,
               "--keep", "text", "--keep", "more", "--keep", "text"]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "File too large" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "out.csv").exists()
    result = score("in.jsonl", "out.csv", "--keep", "text", "--keep", "more")
    assert result.exit_code == 0
    assert "continuing: 1 of 1" in result.stderr
    assert len(read_rows(tmp_path / "out.csv")) == 500


def test_doubled_and_empty_columns(score: Callable[..., Any], tmp_path: Path) -> None:
    """Two columns of one name that nobody asked for do no harm; to keep them by name is refused."""
    (tmp_path / "in.csv").write_text("text,x,x,,\na,1,2,,\n", encoding="utf-8")
    assert score("in.csv", "out.jsonl").exit_code == 0
    assert read_rows(tmp_path / "out.jsonl")[0]["text"] == "a"
    result = score("in.csv", "other.jsonl", "--keep", "x")
    assert result.exit_code == 2
    assert "several columns are named 'x'" in result.stderr
    (tmp_path / "rows.csv").write_text("text,id\n", encoding="utf-8")
    assert score("rows.csv", "none.csv").exit_code == 0
    assert (tmp_path / "none.csv").read_text(encoding="utf-8").startswith("text,id,topic_label,")


def test_standard_input(
    fake: Served, score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is copied beside the output until the run is finished; a run continues only with the same bytes."""

    def pipe(content: bytes) -> Any:
        monkeypatch.chdir(tmp_path)
        command = [sys.executable, "-m", "polyhead_scoring.command", "-", "--format", "csv", "--output", "out.csv",
                   "--server", fake.url, "--wait-s", "0"]  # fmt: skip
        return subprocess.run(command, input=content, capture_output=True, check=False)

    broken = fake.server.answer
    fake.server.answer = lambda text: b"no JSON"
    assert pipe(b"text\nrow 1\n").returncode == 2
    assert (tmp_path / "out.csv.stdin.csv").read_bytes() == b"text\nrow 1\n"
    fake.server.answer = broken
    other = pipe(b"text\nrow 2\n")
    assert other.returncode == 2
    assert b"the content of" in other.stderr
    done = pipe(b"text\nrow 1\n")
    assert done.returncode == 0, done.stderr
    assert [row["stars_value"] for row in read_rows(tmp_path / "out.csv")] == ["1.0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.csv.manifest.json"]


def test_input_changed_meanwhile(fake: Served, score: Callable[..., Any], tmp_path: Path) -> None:
    """An input that grows while it is scored is noticed, and nothing appears in the output's place."""
    (tmp_path / "in.csv").write_text("text\nrow 1\n", encoding="utf-8")
    answer = fake.server.answer

    def grow(text: str) -> Any:
        if text == "row 1":
            (tmp_path / "in.csv").write_text("text\nrow 1\nrow 2\n", encoding="utf-8")
        return answer(text)  # type: ignore[operator] # it is the function of conftest

    fake.server.answer = grow
    result = score("in.csv", "out.csv")
    assert result.exit_code == 2
    assert "was changed" in result.stderr
    assert not (tmp_path / "out.csv").exists()


def test_progress_and_quiet(score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off a terminal, progress is plain lines on standard error with the time left and errors; --quiet has none."""
    monkeypatch.setattr("polyhead_rows.progress.LINE_S", 0.0)
    (tmp_path / "in.csv").write_text("text\n" + "a\n" * 5 + '""\n', encoding="utf-8")
    result = score("in.csv", "out.csv", "--partition-tokens", "1")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("scoring, 100 %: 6 of 6 tokens")
    assert last.endswith("0:00 left, rows 6, errors 1")
    assert score("in.csv", "out.csv", "--partition-tokens", "1", "--quiet", "--restart").stderr == ""
    assert io.StringIO(result.stdout).readline().startswith(f"{tmp_path}/out.csv: 6 rows")
