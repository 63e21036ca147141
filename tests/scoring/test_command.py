"""polyhead-score: how it is called, what it imports, and what is wrong with a command, in one line with exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from polyhead_scoring.command import app
from polyhead_scoring.golden import app as golden_app
from tests.scoring.conftest import Served
from tests.scoring.texts import plain_rows, read_rows, write_jsonl


def said(*arguments: Any) -> str:
    """What the command says when it ends with exit code 2."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.replace("│", " ").split())


def test_wrong_paths_and_addresses(base_checkpoint: Path, damaged: Callable[[], Path], tmp_path: Path) -> None:
    """Each names what is wrong: data, checkpoint, address, output."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(3))
    out = ["--output", tmp_path / "out"]
    engine = ["--checkpoint", base_checkpoint]
    assert "no such file" in said(tmp_path / "nothing.jsonl", *out, *engine)
    assert "cannot be reached" in said("nowhere://bucket/rows.jsonl", *out, *engine)
    broken = damaged()
    (broken / "tokenizer.json").write_text("{", encoding="utf-8")
    assert "tokenizer.json: is not JSON" in said(file, *out, "--checkpoint", broken)
    assert "'fp8' is not one of 'auto', 'fp32'" in said(file, *out, *engine, "--precision", "fp8")
    assert not (tmp_path / "out").exists()
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        assert f"--address {address}: nothing answers" in said(file, *out, *engine, "--address", address)
    assert "not a scoring run" in said(file, "--output", base_checkpoint, *engine)
    assert "Missing option '--output'" in said(file, *engine)
    assert "cannot be read on the nodes" in said("-", *out, *engine, "--address", "ray://127.0.0.1:1")


def test_a_file_cannot_steer_the_terminal(base_checkpoint: Path, tmp_path: Path) -> None:
    """Escape sequences in its name or in its columns are shown as escapes, also by polyhead-golden."""
    file = write_jsonl(tmp_path / "\x1b[2Jrows.jsonl", [{"\x1b[31mtext": "x"}])
    nothing = str(tmp_path / "\x1b[2J.csv")
    engine = ["--checkpoint", str(base_checkpoint)]
    score = [str(file), "--output", str(tmp_path / "out.csv"), "--text-column", "\x9bno", *engine]
    golden = [str(base_checkpoint), nothing, str(tmp_path / "golden.jsonl")]
    for command, arguments in ((app, score), (app, [nothing, *score[1:]]), (golden_app, golden)):
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 2
        assert not {"\x1b", "\x9b"} & set(result.stderr)
        assert r"\x1b[" in result.stderr


def test_one_way_to_answers(base_checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint or a server is named, not both; options of another way say what they need."""
    file, out = write_jsonl(tmp_path / "rows.jsonl", plain_rows(3)), ["--output", tmp_path / "out"]
    engine, server = ["--checkpoint", base_checkpoint], ["--server", "127.0.0.1:1"]
    assert "either --checkpoint DIR or --server HOST:PORT; neither is given" in said(file, *out)
    assert "either --checkpoint DIR or --server HOST:PORT; both are given" in said(file, *out, *engine, *server)
    assert "--wait-s needs --server" in said(file, *out, *engine, "--wait-s", "1")
    assert "--address needs --checkpoint" in said(file, *out, *server, "--address", "local")
    assert "--actors needs --address" in said(file, *out, *engine, "--actors", "1")


def test_options_are_environment_variables(fake: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option has the command's prefix; only --restart cannot be set, because it destroys what is scored."""
    file = write_jsonl(tmp_path / "rows.jsonl", [{"body": "row 1"}])
    variables = {"SERVER": fake.url, "OUTPUT": str(tmp_path / "out.csv"), "TEXT_COLUMN": "body", "API_KEY": "secret"}
    for name, value in variables.items():
        monkeypatch.setenv(f"POLYHEAD_SCORE_{name}", value)
    assert CliRunner().invoke(app, [str(file)]).exit_code == 0
    assert fake.server.requests[0].headers["authorization"] == "Bearer secret"
    assert [row["stars_value"] for row in read_rows(tmp_path / "out.csv")] == ["1.0"]
    monkeypatch.setenv("POLYHEAD_SCORE_RESTART", "1")
    monkeypatch.setenv("POLYHEAD_SCORE_TOP_K", "2")
    assert "cannot continue: top_k" in said(file)
    for one, prefix in ((app, "POLYHEAD_SCORE"), (golden_app, "POLYHEAD_GOLDEN")):
        assert typer.main.get_command(one).context_settings == {"auto_envvar_prefix": prefix}
    unset = [one.name for one in typer.main.get_command(app).params if not getattr(one, "allow_from_autoenv", True)]
    assert unset == ["restart"]


SCORE = """
import sys
from polyhead_scoring.command import app
try:
    app(sys.argv[1:])
except SystemExit as ended:
    assert ended.code in (0, None), ended.code
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"ray", "torch", "transformers"}))
"""


@pytest.mark.parametrize("way", ["server", "engine"])
def test_what_is_imported(way: str, fake: Served, base_checkpoint: Path, tmp_path: Path) -> None:
    """A run with a server imports neither Ray nor torch; one with the engine here imports no Ray."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(3))
    options = ["--server", fake.url] if way == "server" else ["--checkpoint", str(base_checkpoint)]
    run = subprocess.run(
        [sys.executable, "-c", SCORE, str(file), "--output", str(tmp_path / "out.csv"), *options],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.stdout.splitlines()[-1] == ("[]" if way == "server" else "['torch']")
    assert len(read_rows(tmp_path / "out.csv")) == 3


def test_ray_is_an_extra(base_checkpoint: Path, tmp_path: Path) -> None:
    """Without it, --address says what to install."""
    file = write_jsonl(tmp_path / "rows.jsonl", plain_rows(3))
    hidden = "import sys; sys.modules['ray'] = None\n" + SCORE
    run = subprocess.run(
        [sys.executable, "-c", hidden, str(file), "--output", str(tmp_path / "out"), "--checkpoint",
         str(base_checkpoint), "--address", "local"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "pip install './scoring[ray]'" in run.stderr
    assert not (tmp_path / "out").exists()
