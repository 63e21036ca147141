"""Training and evaluation from Python: as the commands, but silent, with errors of one line and HTML to look at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
import transformers
from typer.testing import CliRunner

import polyhead_training
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training import ConfigError, DataError, Interrupted, Run, TrainingError, evaluate, train
from polyhead_training.config import read_config
from polyhead_training.evaluate_command import app as evaluate_app
from polyhead_training.evaluation.notebook import scores_table, table
from polyhead_training.evaluation.wording import number
from tests.training.test_evaluate import write_rows
from tests.training.test_resume import HEAD
from tests.training.tiny_run import trained, weights, write_run


def config_of(folder: Path, **options: str) -> dict[str, Any]:
    """The tiny run's config as a dict."""
    return tomllib.loads(write_run(folder, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, not to be changed."""
    return train(config_of(tmp_path_factory.mktemp("run")))


def test_the_import_is_fast() -> None:
    """The functions are there before torch and transformers are imported."""
    code = (
        "import sys, polyhead_training; from polyhead_training import Run, train, evaluate;"
        "assert callable(train) and callable(evaluate);"
        "assert {'Run', 'evaluate', 'train'} <= set(dir(polyhead_training));"
        "print(sorted({'torch', 'transformers', 'datasets', 'sklearn', 'matplotlib', 'pandas'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_name_of_the_package_is_there() -> None:
    """Each name in __all__ can be imported; another one is an AttributeError."""
    for name in polyhead_training.__all__:
        assert getattr(polyhead_training, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        _ = polyhead_training.fit


def test_a_run_is_that_of_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same weights and metrics; nothing is printed; what it returns is what is in the folder."""
    ours = train(config_of(tmp_path / "python"))
    assert capfd.readouterr() == ("", "")
    theirs = trained(write_run(tmp_path / "command"))
    assert ours.checkpoint == tmp_path / "python" / "out"
    expected = weights(theirs)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(ours.checkpoint).items())
    assert ours.metrics == json.loads((ours.checkpoint / "metrics.json").read_text(encoding="utf-8"))
    assert ours.history == json.loads((ours.checkpoint / "report" / "history.json").read_text(encoding="utf-8"))
    assert ours.evaluation.metrics == ours.metrics["validation"]
    assert len(ours.evaluation.texts) == 16
    assert ours.config.training.batch_size == 4
    assert ours.engine_distance < 1e-5
    assert repr(ours).startswith(
        f"Run(checkpoint='{ours.checkpoint}', evaluation=<Evaluation of 16 texts: topic accuracy"
    )
    assert len(repr(ours)) < 300


@pytest.mark.parametrize("kind", ["path", "text", "config"])
def test_a_config_may_be_a_file(tmp_path: Path, kind: str) -> None:
    """Also validated already."""
    path = write_run(tmp_path, "max_steps = 1")
    given: Any = {"path": path, "text": str(path), "config": read_config(path)}[kind]
    assert train(given).config == read_config(path)


def test_a_dict_may_hold_paths_and_arrays(tmp_path: Path) -> None:
    """They become what TOML has."""
    config = config_of(tmp_path, training="max_steps = 1")
    config["data"]["train"] = (Path(config["data"]["train"]),)
    config["heads"][0]["labels"] = pandas.Series(["dogs", "cats"])
    config["seed"] = np.int64(3)
    found = train(config).config
    assert found.data.train == [str(tmp_path / "rows.jsonl")]
    assert found.heads[0].labels == ["dogs", "cats"]
    assert found.seed == 3


def test_lines_and_progress_are_printed_if_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Those of the command."""
    train(config_of(tmp_path, training="max_steps = 1"), show_progress=True)
    printed = capfd.readouterr()
    assert "training 0.0 M parameters" in printed.out
    assert "calibrating" in printed.out
    assert "1 of 1 steps" in printed.err


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"data": {}}, ConfigError, "config: data: give either train"),
        (
            {"training": {"epoch": 1}},
            ConfigError,
            r"config: training: unknown field 'epoch' \(did you mean 'epochs'\?\)",
        ),
        ({"data": {"train": "none.csv"}}, DataError, "none.csv: no such file"),
        ({"data": {"train": pandas.DataFrame({"text": ["a", "b"]})}}, ConfigError, "config.data.train: must be a text"),
        (
            {"output": {"a": {1}}},
            ConfigError,
            r"config\.output\.a: must be a text, a number, .*got set",
        ),
        ({"data": {"train": None}}, ConfigError, "give either train"),
        ({"heads": "topic"}, ConfigError, "config: heads: Input should be a valid list"),
        ({"heads": []}, ConfigError, "config: heads: .*at least 1"),
        ({"heads": [{"name": "topic", "kind": "one"}]}, ConfigError, "config: heads.0.kind: Input should be"),
        ({"output": None}, ConfigError, "config: output"),
        ({"seed": float("nan")}, ConfigError, "config: seed"),
        ({"model": {"max_length": 8, "gpt2": {"n_layer": "x"}}}, ConfigError, "model.gpt2: n_layer"),
        ({1: 2}, ConfigError, "config: unknown field '1'"),
    ],
)
def test_a_mistake_is_an_exception_of_one_line(
    tmp_path: Path, change: dict[Any, Any], kind: type[Exception], message: str
) -> None:
    """It names the field; nothing is written."""
    with pytest.raises(kind, match=message) as caught:
        train(config_of(tmp_path) | change)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [5, None, ["a.toml"], object()])
def test_something_that_is_no_config(given: Any) -> None:
    """Says what one may be."""
    with pytest.raises(ConfigError, match=r"^config must be a dict, a path or a TrainingConfig, got "):
        train(given)


def test_options_that_contradict_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError, match="resume and restart contradict"):
        train({}, resume=True, restart=True)
    with pytest.raises(ConfigError, match="there is no unfinished run here"):
        train(config_of(tmp_path), resume=True)
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        train(tmp_path / "none.toml")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="train\\(\\) runs in one process"):
        train({})


def test_what_the_system_refuses_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the system's error as its cause."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(TrainingError, match=r"^\[Errno 2\] No such file or directory") as caught:
        train(config_of(tmp_path))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_thread_may_train(tmp_path: Path) -> None:
    """Only the main thread can handle signals; the handlers of the program stay."""
    found: list[Run] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    during = []

    def look(*_: Any) -> None:
        during.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    config = config_of(tmp_path, training="max_steps = 2")
    thread = threading.Thread(target=lambda: found.append(train(config)))
    thread.start()
    while thread.is_alive():
        look()
        thread.join(0.05)
    assert len(found) == 1
    assert all(handlers == before for handlers in during)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted, from which resume goes on; the handlers are put back."""
    config = config_of(tmp_path, model=HEAD)
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("POLYHEAD_TEST_SIGNAL", f"{int(signal.SIGINT)}@3")
    with pytest.raises(Interrupted, match=r"a checkpoint is saved; to continue: train\(config, resume=True\)"):
        train(config)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.delenv("POLYHEAD_TEST_SIGNAL")
    with pytest.raises(ConfigError, match="there is an unfinished run here"):
        train(config)
    assert train(config, resume=True).metrics["training"]["steps"] == 8


def test_the_settings_of_other_libraries_are_put_back(tmp_path: Path) -> None:
    """Their bars and notes are those of the program again, also after an error."""
    logs = transformers.utils.logging
    before = logs.get_verbosity(), logs.is_progress_bar_enabled(), datasets.utils.are_progress_bars_disabled()
    try:
        logs.set_verbosity_info()
        logs.enable_progress_bar()
        datasets.enable_progress_bars()
        with pytest.raises(DataError):
            train(config_of(tmp_path) | {"data": {"train": "none.csv"}})
        assert logs.get_verbosity() == logs.INFO
        assert logs.is_progress_bar_enabled()
        assert not datasets.utils.are_progress_bars_disabled()
    finally:
        logs.set_verbosity(before[0])
        (logs.enable_progress_bar if before[1] else logs.disable_progress_bar)()
        (datasets.disable_progress_bars if before[2] else datasets.enable_progress_bars)()


def test_an_evaluation_is_that_of_the_command(
    base_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same metrics and slices; nothing is printed or written unless asked."""
    write_rows(tmp_path / "rows.jsonl")
    before = set(tmp_path.iterdir())
    ours = evaluate(base_checkpoint, tmp_path / "rows.jsonl", slices="country")
    assert capfd.readouterr() == ("", "")
    assert set(tmp_path.iterdir()) == before
    arguments = [str(base_checkpoint), str(tmp_path / "rows.jsonl"), "--slice", "country"]
    result = CliRunner().invoke(evaluate_app, [*arguments, "--output", str(tmp_path / "theirs")])
    assert result.exit_code == 0, result.output
    theirs = json.loads((tmp_path / "theirs" / "metrics.json").read_text(encoding="utf-8"))
    assert ours.metrics == theirs["heads"]
    assert ours.slices == theirs["slices"]
    evaluate(str(base_checkpoint), [str(tmp_path / "rows.jsonl")], output=tmp_path / "report", show_progress=True)
    assert (tmp_path / "report" / "index.html").exists()
    assert "40 texts answered" in capfd.readouterr().out


def test_a_run_can_be_evaluated_on_other_rows(run: Run, tmp_path: Path) -> None:
    """With options that say how they are read."""
    (tmp_path / "more.txt").write_text("Text;topic;stars\ncats sleep well;cats;3\n", encoding="utf-8")
    found = evaluate(run, tmp_path / "more.txt", format="csv", delimiter=";", text_column="Text")
    assert found.metrics["topic"]["rows"] == 1
    again = evaluate(run, tmp_path / "more.txt", format="csv", delimiter=";", config=run.config, text_column="Text")
    assert again.metrics == found.metrics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimeter": ";"}, r"unknown option 'delimeter' \(did you mean 'delimiter'\?\); allowed are text_column"),
        ({"train": "x"}, "unknown option 'train'"),
        ({"device": "tpu"}, "'tpu': allowed are cpu and cuda"),
        ({"format": "xls"}, "format: Input should be"),
        ({"config": {"output": "x"}}, "config: data: this field is missing"),
        ({"data": []}, "data: must name at least one file"),
        ({"data": "none.csv"}, "none.csv: no such file"),
        ({"checkpoint": "nowhere"}, "nowhere"),
    ],
)
def test_a_mistake_in_an_evaluation(base_checkpoint: Path, options: dict[str, Any], message: str) -> None:
    """One line of an exception of ours."""
    arguments = {"checkpoint": base_checkpoint, "data": "rows.csv"} | options
    with pytest.raises(
        polyhead_training.TrainingError if "checkpoint" not in options else Exception, match=message
    ) as e:
        evaluate(**arguments)
    assert "\n" not in str(e.value)


def test_a_run_is_shown_with_its_scores_and_plots(run: Run) -> None:
    """Numbers of metrics.json, three digits after the point; no text of the rows."""
    html = run._repr_html_()
    for name in ("topic", "stars"):
        assert f"<td>{name}</td>" in html
    assert f"accuracy {number(run.metrics['validation']['topic']['accuracy'])}" in html
    assert f"mae {number(run.metrics['validation']['stars']['mae'])}" in html
    assert html.count("<svg") >= 3
    assert str(run.checkpoint) in html
    assert "cats sleep" not in html


def test_names_are_escaped() -> None:
    """A head or a label cannot become markup in a notebook."""
    head = Head(name="<b>&", kind=HeadKind.SINGLE_LABEL, labels=("<i>", "b"))
    html = scores_table(
        {"<b>&": {"rows": 2, "accuracy": 0.5}}, Schema([head]), "<u>", {"<b>&": {"<s>": {"accuracy": 1}}}
    )
    assert "<b>" not in html
    assert "<u>" not in html
    assert "<s>" not in html
    assert "&lt;b&gt;&amp;" in html


def test_a_table_shows_numbers_as_people_read_them() -> None:
    """Three digits of a fraction, none of a large number, nothing of None."""
    html = table(["a", "b"], [[0.12345, 12345.6], [None, 1234], [np.float64(0.5), "x"]])
    assert html == (
        "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>0.123</td><td>12,346</td></tr>"
        "<tr><td></td><td>1,234</td></tr><tr><td>0.500</td><td>x</td></tr></tbody></table>"
    )
