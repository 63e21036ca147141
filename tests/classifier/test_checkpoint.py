"""A checkpoint is read completely or refused with one line; it reads back as it was stored."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from polyhead.checkpoint import read_checkpoint, write_checkpoint
from polyhead.errors import CheckpointError
from tests.tiny import SCHEMA, tiny_spec

Damaged = Callable[[], Path]


def refusal(path: Path) -> str:
    """Reads the checkpoint; returns the message of the error, which must be one line."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path).golden()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Changes the checkpoint's config.json in place."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    change(config)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_save_then_load_is_exact(base_checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint that is read and stored again has the same bits in its tensors, and all other parts are equal."""
    first = read_checkpoint(base_checkpoint)
    write_checkpoint(
        tmp_path / "again",
        config=first.config,
        spec=first.spec,
        schema=first.schema,
        tensors=first.tensors,
        tokenizer_json=first.tokenizer.to_str(),
        golden=first.golden(),
        metrics={"x": 1.5},
    )
    again = read_checkpoint(tmp_path / "again")
    assert again.tensors.keys() == first.tensors.keys()
    assert all(torch.equal(again.tensors[name], first.tensors[name]) for name in first.tensors)
    assert (again.config, again.spec, again.schema) == (first.config, first.spec, first.schema)
    assert again.golden() == first.golden()
    assert again.tokenizer.to_str() == first.tokenizer.to_str()
    assert sorted(file.name for file in (tmp_path / "again").iterdir()) == [
        "config.json", "golden.jsonl", "metrics.json", "model.safetensors", "report", "tokenizer.json",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "golden.jsonl"])
def test_a_missing_or_damaged_file_is_named(damaged: Damaged, name: str) -> None:
    """Each file of the contract must exist and be readable; the error names it."""
    path = damaged()
    (path / name).write_bytes(b"\x00garbage")
    assert name in refusal(path)
    (path / name).unlink()
    assert f"{name}: is missing" in refusal(path)


def test_a_missing_tensor_is_named(damaged: Damaged) -> None:
    """The error names the first missing tensor and its shape."""
    path = damaged()
    tensors = load_file(path / "model.safetensors")
    del tensors["body_model.h.1.mlp.c_fc.weight"]
    save_file(tensors, path / "model.safetensors")
    assert "tensor 'body_model.h.1.mlp.c_fc.weight' of shape (32, 128) is missing" in refusal(path)


def test_a_misshaped_tensor_is_named(damaged: Damaged) -> None:
    """The error names the tensor, the shape that it must have and the shape that it has."""
    path = damaged()
    tensors = load_file(path / "model.safetensors")
    tensors["head.weight"] = tensors["head.weight"][:-1].clone()
    save_file(tensors, path / "model.safetensors")
    assert "'head.weight' must have shape (8, 32), got (7, 32)" in refusal(path)


def test_an_unknown_tensor_is_named(damaged: Damaged) -> None:
    """A tensor that belongs to no part of the model is an error; it is not silently dropped."""
    path = damaged()
    save_file(load_file(path / "model.safetensors") | {"extra": torch.zeros(1)}, path / "model.safetensors")
    assert "'extra' belongs to no part" in refusal(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("polyhead"), "no polyhead section"),
        (lambda c: c["polyhead"].pop("heads"), "missing field 'heads'"),
        (lambda c: c["polyhead"].pop("max_length"), "max_length: this field is missing"),
        (lambda c: c["polyhead"].update(colour=1), "colour: unknown field"),
        (lambda c: c["polyhead"].update(text_template="{a"), "text_template: character 1: expected '}'"),
        (lambda c: c["polyhead"].update(text_template=3), "text_template: .*valid string"),
        (lambda c: c["polyhead"].update(architecture="bert"), "architecture: .*got 'bert'"),
        (lambda c: c["polyhead"].update(max_length=1000), r"max_length \(1000\) exceeds n_positions \(48\)"),
        (
            lambda c: c["polyhead"].update(layer2concat=2),
            "layer2concat: must be a number for architecture hidden_state_concat",
        ),
        (lambda c: c["polyhead"].update(head_class="Conv"), "head_class 'Conv': must be one of"),
        (lambda c: c["polyhead"].update(head_class="no_such:Head"), "cannot be imported here"),
        (lambda c: c["polyhead"].update(head_class="tests.custom_head:not_a_module"), "is not a torch.nn.Module class"),
        (lambda c: c["polyhead"].update(head_args={"bias": True}), "takes no arguments"),
        (lambda c: c.pop("n_embd"), "n_embd: this field is missing"),
        (lambda c: c.update(n_head=5), "multiple of n_head"),
        (lambda c: c.update(vocab_size=10), "more than vocab_size|must have shape"),
    ],
)
def test_a_wrong_config_is_named(damaged: Damaged, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    """Unknown, missing and contradictory fields are errors that name the field."""
    assert re.search(message, refusal(edit(damaged(), change)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"}', "golden.jsonl:1: scores: this field is missing"),
        ('{"text": "x", "scores": [1], "token_count": 1, "truncated": false}', "must be 8 numbers, got 1"),
        ("", "golden.jsonl: has no rows"),
    ],
)
def test_a_wrong_golden_row_is_named(damaged: Damaged, line: str, message: str) -> None:
    """A wrong golden row is an error that names its line."""
    path = damaged()
    (path / "golden.jsonl").write_text(line, encoding="utf-8")
    assert message in refusal(path)


def test_a_failed_write_leaves_the_old_checkpoint(base_checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint that would not load does not replace the old one; no temporary folder remains."""
    target = Path(shutil.copytree(base_checkpoint, tmp_path / "c"))
    before = (target / "config.json").read_bytes()
    good = read_checkpoint(target)
    tensors = dict(good.tensors)
    del tensors["head.weight"]
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        write_checkpoint(
            target,
            config=good.config,
            spec=tiny_spec(),
            schema=SCHEMA,
            tensors=tensors,
            tokenizer_json=good.tokenizer.to_str(),
            golden=good.golden(),
            metrics={},
        )
    assert (target / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def rewrite(target: Path, source: Path, **changes: Any) -> None:
    """Writes the checkpoint at `source` to `target`, with changes."""
    good = read_checkpoint(source)
    parts: dict[str, Any] = {
        "config": good.config,
        "spec": good.spec,
        "schema": good.schema,
        "tensors": good.tensors,
        "tokenizer_json": good.tokenizer.to_str(),
        "golden": good.golden(),
        "metrics": {},
    }
    write_checkpoint(target, **(parts | changes))


def test_only_a_checkpoint_is_replaced(base_checkpoint: Path, tmp_path: Path) -> None:
    """A folder with other files, or a file, is not replaced; an empty folder and an older checkpoint are."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work", encoding="utf-8")
    (tmp_path / "file").write_text("more", encoding="utf-8")
    for name in ("precious", "file"):
        with pytest.raises(CheckpointError, match="files that are no checkpoint, so it is not replaced"):
            rewrite(tmp_path / name, base_checkpoint)
    assert (tmp_path / "precious" / "thesis.txt").read_text(encoding="utf-8") == "years of work"
    assert (tmp_path / "file").is_file()
    (tmp_path / "empty").mkdir()
    rewrite(tmp_path / "empty", base_checkpoint)
    rewrite(tmp_path / "empty", base_checkpoint, metrics={"second": 1})
    assert json.loads((tmp_path / "empty" / "metrics.json").read_text(encoding="utf-8")) == {"second": 1}


def test_a_failed_proof_leaves_the_old_checkpoint(base_checkpoint: Path, tmp_path: Path) -> None:
    """If `prove` raises, the older checkpoint stays as it was."""

    def disprove(fresh: Path) -> None:
        assert read_checkpoint(fresh).golden()
        raise CheckpointError("wrong answers")

    rewrite(tmp_path / "c", base_checkpoint, metrics={"first": 1})
    with pytest.raises(CheckpointError, match="wrong answers"):
        rewrite(tmp_path / "c", base_checkpoint, prove=disprove)
    assert json.loads((tmp_path / "c" / "metrics.json").read_text(encoding="utf-8")) == {"first": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_golden_texts_may_hold_any_line_separator(base_checkpoint: Path, tmp_path: Path) -> None:
    """U+2028 and similar characters are part of a text, not the end of a row."""
    rows = [
        row.model_copy(update={"text": "one\u2028two\x85three\nfour"})
        for row in read_checkpoint(base_checkpoint).golden()
    ]
    rewrite(tmp_path / "c", base_checkpoint, golden=rows)
    assert read_checkpoint(tmp_path / "c").golden() == rows
