"""What is taken for a checkpoint and is none is named, with what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polyhead.checkpoint import read_checkpoint
from polyhead.errors import CheckpointError, PolyheadError
from polyhead.export import export_checkpoint
from polyhead.other_folders import what_it_is


def write_config(folder: Path, **fields: object) -> Path:
    """A folder with a config.json of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def unfinished(folder: Path) -> Path:
    """``runs/a`` that polyhead-train has not finished; one saved step is there."""
    step = folder / "runs" / "a.training" / "checkpoints" / "checkpoint-5"
    write_config(step, model_type="gpt2", architectures=["GPT2BaseForSequenceClassification"])
    (folder / "runs" / "a.training" / "run.json").write_text("{}", encoding="utf-8")
    return folder / "runs" / "a"


def seed_checkpoint(folder: Path) -> Path:
    """As old versions of transformers save it: the config does not name the class."""
    write_config(folder, model_type="gpt2")
    save_file({"body_model.wte.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    return folder


RESUME = "; polyhead-train CONFIG.toml --resume finishes it and writes the checkpoint"
UNFINISHED = "the unfinished training of {0}/runs/a" + RESUME
CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "unfinished": (unfinished, "{0}/runs/a: is not written yet, because its training is not finished" + RESUME),
    "working folder": (lambda folder: unfinished(folder).with_name("a.training"), UNFINISHED),
    "saved step": (
        lambda folder: unfinished(folder).with_name("a.training") / "checkpoints" / "checkpoint-5",
        UNFINISHED,
    ),
    "folder above it": (lambda folder: unfinished(folder).parent, UNFINISHED),
    "seed by its class": (
        lambda folder: write_config(folder / "s", architectures=["GPT2HiddenStateConcatForSequenceClassification"]),
        "{0}/s/config.json: has no polyhead section; the folder is a checkpoint of that_nlp_library; "
        "polyhead-import {0}/s --config import.toml converts it",
    ),
    "seed by its tensors": (lambda folder: seed_checkpoint(folder / "s"), "polyhead-import {0}/s --config"),
    "language model": (
        lambda folder: write_config(folder / "g", model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        "is a GPT2LMHeadModel of transformers, without heads that can be served; train them on it: "
        'pretrained = "{0}/g"',
    ),
    "another model": (
        lambda folder: write_config(folder / "b", model_type="bert"),
        "is a model of transformers of type 'bert'; Polyhead serves GPT-2 classifiers only",
    ),
    "another config": (lambda folder: write_config(folder / "x"), "is not the config of a checkpoint"),
    "file": (
        lambda folder: write_config(folder / "f", model_type="gpt2") / "config.json",
        "{0}/f/config.json: is a file; name its folder, {0}/f",
    ),
    "nothing": (lambda folder: folder / "nothing", "{0}/nothing: is not a checkpoint folder; it does not exist"),
    "empty": (lambda folder: folder, "{0}/config.json: is missing"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_what_it_is(tmp_path: Path, name: str) -> None:
    """Both readers of a checkpoint, the one with torch and the one without, refuse it with one line that helps."""
    make, message = CASES[name]
    path = make(tmp_path)
    wanted = message.format(tmp_path)
    with pytest.raises(CheckpointError) as exported:
        export_checkpoint(path, tmp_path / "repository")
    assert wanted in str(exported.value)
    assert "\n" not in str(exported.value)
    with pytest.raises(CheckpointError) as read:
        read_checkpoint(path)
    if name != "another config":
        assert wanted in str(read.value)
    assert not (tmp_path / "repository").exists()


def test_a_repository_names_its_checkpoint(base_checkpoint: Path, tmp_path: Path) -> None:
    """From the repository, the model and its version; and a folder of several checkpoints names them."""
    repository = tmp_path / "repository"
    version = export_checkpoint(base_checkpoint, repository, precision="fp32")
    for folder, kind in ((repository, "repository"), (version.parent, "repository"), (version, "version of a model")):
        with pytest.raises(CheckpointError, match=f"{kind} for Triton; its checkpoint is {version / 'checkpoint'}"):
            read_checkpoint(folder)
    for name in ("a", "b"):
        shutil.copytree(base_checkpoint, tmp_path / "runs" / name)
    with pytest.raises(CheckpointError, match=f"holds {tmp_path}/runs/a, {tmp_path}/runs/b; name one"):
        read_checkpoint(tmp_path / "runs")


def test_a_finished_checkpoint_beside_a_new_run_is_a_checkpoint(base_checkpoint: Path, tmp_path: Path) -> None:
    """An unfinished run of the same output changes nothing about the checkpoint that is there."""
    path = unfinished(tmp_path)
    shutil.copytree(base_checkpoint, path)
    assert read_checkpoint(path).path == path


def test_strange_files_are_no_traceback(tmp_path: Path) -> None:
    """Whatever the files hold: links to themselves, pipes, other JSON, weights that are none."""
    folder = write_config(tmp_path / "a")
    (folder / "model.safetensors").write_bytes(b"\xff" * 20)
    assert what_it_is(folder) is None
    (folder / "config.json").write_text("[" * 100_000, encoding="utf-8")
    assert what_it_is(folder) is None
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert what_it_is(folder) is None
    assert what_it_is(Path("/")) is None
    with pytest.raises(CheckpointError, match="is a pipe"):
        read_checkpoint(folder)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(PolyheadError):
        read_checkpoint(tmp_path / "loop")
