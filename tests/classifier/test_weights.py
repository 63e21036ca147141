"""Weights are finite float32 of the right shapes; a config that means more than the file holds costs nothing."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from polyhead.checkpoint import read_checkpoint
from polyhead.errors import CheckpointError
from polyhead.schema import Head, Schema
from tests.tiny import write_tiny_checkpoint

Damaged = Callable[[], Path]


def refusal(path: Path) -> str:
    """The message of the error, one line of readable length."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Changes config.json in place."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    change(config)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def with_tensor(path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """Changes a tensor of the checkpoint in place."""
    tensors = load_file(path / "model.safetensors")
    tensors[name] = change(tensors[name].clone())
    save_file(tensors, path / "model.safetensors")
    return path


def put(value: float, *place: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Puts a value at a place."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[place] = value
        return tensor

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("body_model.wte.weight", (399, 3)),  # of a token that no golden text has
        ("body_model.wpe.weight", (47, 0)),
        ("body_model.h.2.ln_1.bias", (31,)),
        ("head.weight", (7, 31)),
    ],
)
def test_a_value_that_is_not_finite_is_named(damaged: Damaged, name: str, place: tuple[int, ...], value: float) -> None:
    """The error names the tensor and the place, also if no golden text reads it."""
    message = refusal(with_tensor(damaged(), name, put(value, *place)))
    assert f"tensor {name!r} holds {value} at {list(place)}" in message


def test_a_value_beyond_float32_is_refused(damaged: Damaged) -> None:
    """A float64 would become infinite; no float64 is read at all, because its digits would be lost."""
    path = with_tensor(damaged(), "head.weight", lambda tensor: tensor.double() * 1e300)
    assert "tensor 'head.weight' must be one of F32, F16, BF16, got F64" in refusal(path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn])
def test_other_types_are_refused(damaged: Damaged, dtype: torch.dtype) -> None:
    """Whole numbers and 8-bit floats are no weights of this format."""
    path = with_tensor(damaged(), "head.weight", lambda tensor: tensor.to(dtype))
    assert "must be one of F32, F16, BF16, got" in refusal(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_widened_exactly(damaged: Damaged, dtype: torch.dtype) -> None:
    """Each float16 and bfloat16 is a float32 too."""
    path = with_tensor(damaged(), "head.weight", lambda tensor: tensor.to(dtype))
    found = read_checkpoint(path).tensors["head.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, load_file(path / "model.safetensors")["head.weight"].float())


BILLION = 10**9


def many_heads(config: dict[str, Any]) -> None:
    head = config["polyhead"]["heads"][2]
    config["polyhead"]["heads"] = [head | {"name": f"h{number}"} for number in range(100_000)]


def many_labels(config: dict[str, Any]) -> None:
    head = config["polyhead"]["heads"][1]
    head |= {"labels": [str(number) for number in range(200_000)], "thresholds": [0.5] * 200_000}


def a_long_taxonomy(config: dict[str, Any]) -> None:
    head = config["polyhead"]["heads"][0]
    labels = head["labels"]
    config["polyhead"]["heads"] = [
        head
        | {
            "name": str(number),
            "parent": str(number - 1) if number else None,
            "parent_of": dict(zip(labels, labels, strict=True)) if number else None,
        }
        for number in range(1000)
    ]


def many_wrong_fields(config: dict[str, Any]) -> None:
    config["polyhead"].update({f"field{number}": "x" * 1000 for number in range(1000)})


def wrong_labels(config: dict[str, Any]) -> None:
    config["polyhead"]["heads"][0]["labels"] = ["same"] + ["x" * 1000, "x" * 1000] * 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(n_layer=BILLION), r"tensor 'body_model\.h\.3\..*' of shape .* is missing"),
        (lambda c: c.update(n_layer=2), r"tensor 'body_model\.h\.2\..*' belongs to no part"),
        (lambda c: c.update(n_embd=4 * BILLION), "'body_model.wte.weight' must have shape"),
        (lambda c: c.update(vocab_size=BILLION), "'body_model.wte.weight' must have shape"),
        (lambda c: c.update(n_positions=BILLION), "'body_model.wpe.weight' must have shape"),
        (lambda c: c.update(n_inner=BILLION), "c_fc.weight' must have shape"),
        (lambda c: c.update(n_inner=-1), "n_inner: .*greater than 0"),
        (lambda c: c.update(n_layer=10**30), "too large"),
        (lambda c: c.update(n_layer=True), "n_layer: "),
        (lambda c: c.update(n_layer=3.0), "n_layer: "),
        (lambda c: c.update(n_head=BILLION), "multiple of n_head"),
        (lambda c: c.update(layer_norm_epsilon=float("inf")), "Infinity is no number"),
        (lambda c: c.update(initializer_range=float("nan")), "NaN is no number"),
        (lambda c: c["polyhead"]["heads"][0].update(temperature=float("nan")), "NaN is no number"),
        (lambda c: c["polyhead"]["heads"][0].update(temperature="1"), "temperature: "),
        (lambda c: c["polyhead"]["heads"][0].update(weight=True), "weight: "),
        (lambda c: c["polyhead"]["heads"][2].update(y_range=[-1e308, 1e308]), "y_range must be two numbers of float32"),
        (lambda c: c["polyhead"].update(max_length=BILLION), r"max_length \(1000000000\) exceeds n_positions"),
        (lambda c: c["polyhead"].update(head_args={"last_hidden_size": BILLION}), "takes no arguments"),
        (lambda c: c["polyhead"].update(text_template="{a}" * 100_000), "text_template: .*at most 65536"),
        (many_heads, "at most 1000 heads, got 100000"),
        (many_labels, "'head.weight' must have shape"),
        (a_long_taxonomy, "more than 32 levels"),
        (many_wrong_fields, "field0: unknown field; .* and 995 more"),
        (wrong_labels, "labels must be unique"),
        (lambda c: c.update(thresholds=[1], heads=[]), "'heads': unknown field; .* in its polyhead section"),
        (lambda c: c.update(text_template="{a}"), "'text_template': unknown field"),
        (lambda c: c.update(polyhead_format=3), "'polyhead_format': unknown field"),
        (lambda c: c.update({"polyhead" + "x" * 10_000: 3}), "unknown field"),
    ],
)
def test_a_config_is_compared_before_anything_is_allocated(
    damaged: Damaged, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """Sizes that the file does not have, and sizes that no model has, are one line at once: else this would not end."""
    assert re.search(message, refusal(edit(damaged(), change)))


@pytest.mark.parametrize(
    ("head_args", "message"),
    [
        ({"last_hidden_size": BILLION}, r"'head\.pre_classifier\.weight' must have shape \(1000000000, 64\)"),
        ({"last_hidden_size": 10**18}, "head_args|must have shape"),
        ({"last_hidden_size": "8"}, "head_args"),
        ({"num_labels": 3}, "num_labels must be 8"),
        ({"num_labels": BILLION}, "num_labels must be 8"),
        ({"classifier_dropout": 5}, "head_args"),
        ({"last_hidden_size": [[[[8]]]]}, "head_args"),
    ],
)
def test_sizes_of_a_head_are_compared_too(tmp_path: Path, head_args: dict[str, Any], message: str) -> None:
    """A head of a billion units is not built to find out its shape."""
    write_tiny_checkpoint(
        tmp_path / "c", "hidden_state_concat", head_class="ConcatHeadExtended", head_args={"last_hidden_size": 8}
    )
    path = edit(tmp_path / "c", lambda config: config["polyhead"]["head_args"].update(head_args))
    assert re.search(message, refusal(path))


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        [],
    ],
)
def test_a_header_that_lies_is_refused(damaged: Damaged, header: Any) -> None:
    """A header that claims more than the file has, or overlapping tensors, is one line."""
    path = damaged()
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert "is damaged or not a safetensors file" in refusal(path)
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + text)
    assert "is damaged or not a safetensors file" in refusal(path)


def tokenizer(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Changes tokenizer.json in place."""
    content = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def add_tokens(content: dict[str, Any], count: int) -> None:
    content["added_tokens"] += [
        {"id": 400 + number, "content": f"<{number}>", "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for number in range(count)
    ]  # fmt: skip


def move_an_id(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=lambda token: vocabulary[token])] = 4_000_000


def add_an_id_behind(content: dict[str, Any]) -> None:
    content["post_processor"] = {
        "type": "RobertaProcessing", "sep": ["</s>", 4_000_000], "cls": ["<s>", 0], "trim_offsets": True,
        "add_prefix_space": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: add_tokens(c, 100_000), "added tokens, at most 20000 are read"),
        (lambda c: add_tokens(c, 3), "tokens, more than vocab_size"),
        (move_an_id, "has a token with id 4000000; ids must be below vocab_size"),
        (add_an_id_behind, "has a token with id 4000000; ids must be below vocab_size"),
        (lambda c: c.update(model={"type": "BPE"}), "is damaged or not a tokenizer"),
        (lambda c: c["model"].update(ignore_merges="x" * 70_000), "is damaged or not a tokenizer"),
    ],
)
def test_a_tokenizer_that_the_model_cannot_read_is_refused(
    damaged: Damaged, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """An id without an embedding would cost all texts of a micro-batch their answers."""
    assert message in refusal(tokenizer(damaged(), change))


@pytest.mark.parametrize(
    "name", ["tests.leaving:Head", "no.such.module:Head", "os:system", "os:nothing", ":", "x:", "."]
)
def test_a_head_class_that_ends_the_process_is_refused(damaged: Damaged, name: str) -> None:
    """A module that calls exit when it is imported must not decide the exit code of the command that reads it."""
    path = edit(damaged(), lambda config: config["polyhead"].update(head_class=name))
    assert "head_class" in refusal(path)


def test_a_head_class_that_computes_when_it_is_made_is_read(tmp_path: Path) -> None:
    """Shapes are found out without memory; a class for which this is impossible is made as it is."""
    write_tiny_checkpoint(tmp_path / "c", head_class="tests.custom_head:ComputingHead")
    assert read_checkpoint(tmp_path / "c").tensors["head.linear.weight"].shape == (8, 32)


def test_texts_of_the_schema_are_unicode(damaged: Damaged) -> None:
    """A lone surrogate in a name or label could not be sent, so it would cost every text its answer."""
    for field, value in (("name", "\ud800"), ("labels", ["news", "sport", "\udfff"])):
        path = edit(damaged(), lambda config, f=field, v=value: config["polyhead"]["heads"][0].update({f: v}))
        assert re.search("heads.0: .*(valid Unicode|unicode string)", refusal(path))
        shutil.rmtree(path)
    path = edit(damaged(), lambda config: config["polyhead"].update(text_template="{a} \ud800"))
    assert re.search("text_template: .*(valid Unicode|unicode string)", refusal(path))


def test_a_wide_taxonomy_is_decoded_label_by_label() -> None:
    """Each label's children are found once per schema, not once per label and text."""
    labels = [str(number) for number in range(300)]
    schema = Schema(
        [
            Head(name="a", kind="single_label", labels=labels),
            Head(
                name="b",
                kind="single_label",
                labels=labels,
                parent="a",
                parent_of=dict(zip(labels, labels, strict=True)),
            ),
        ]
    )
    assert schema.child_labels["b"] == [[number] for number in range(300)]
    assert schema.child_labels is schema.child_labels
