"""The checkpoint: a folder that describes itself. Only this module reads and writes it.

``config.json`` (a GPT-2 config plus one ``polyhead`` section), ``model.safetensors``, ``tokenizer.json``,
``golden.jsonl``, ``metrics.json``, ``report/``. No pickled file is ever read.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from polyhead.body import Body
from polyhead.errors import CheckpointError, SchemaError, TemplateError, describe
from polyhead.files import replaced_folder
from polyhead.heads import build_head
from polyhead.schema import Schema
from polyhead.template import Template

Architecture = Literal["base", "hidden_state_concat"]

MASK_BUFFERS = (".attn.bias", ".attn.masked_bias")  # constant masks that transformers saved before 4.31


class Spec(BaseModel):
    """The ``polyhead`` section without its heads: how hidden states become logits.

    Attributes:
        architecture: ``base`` reads the last hidden state, ``hidden_state_concat`` the last `layer2concat` ones.
        layer2concat: for ``hidden_state_concat``, 1 to n_layer; else None.
        head_class: ``Linear``, ``ConcatHeadSimple``, ``ConcatHeadExtended`` or ``package.module:Class``.
        head_args: keyword arguments of `head_class`.
        max_length: in tokens; the rest of a longer text is not read.
        text_template: makes a text of a row's fields, see `polyhead.template`; None if the model takes texts only.
            Checkpoints that were written before there were templates lack it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    architecture: Architecture
    layer2concat: int | None
    head_class: str
    head_args: dict[str, Any]
    max_length: int = Field(gt=0)
    text_template: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Spec:
        if (self.architecture == "hidden_state_concat") != (self.layer2concat is not None):
            raise ValueError("layer2concat: must be a number for architecture hidden_state_concat and null for base")
        if self.architecture == "hidden_state_concat" and self.head_class == "Linear":
            raise ValueError(
                "head_class: Linear is for architecture base; for hidden_state_concat take ConcatHeadSimple"
            )
        try:
            _ = self.template
        except TemplateError as error:
            raise ValueError(f"text_template: {error}") from error
        return self

    @property
    def template(self) -> Template | None:
        """The parsed `text_template`."""
        return None if self.text_template is None else Template(self.text_template)


class GoldenRow(BaseModel):
    """One row of ``golden.jsonl``: a real text with the scores that transformers computed for it in float32."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    scores: tuple[float, ...]
    token_count: int = Field(gt=0)
    truncated: bool


@dataclass(frozen=True)
class Checkpoint:
    """The folder's content, validated: every tensor is present, float32 and of the right shape."""

    path: Path
    config: dict[str, Any] = field(repr=False)
    body: Body
    spec: Spec
    schema: Schema
    tensors: dict[str, torch.Tensor] = field(repr=False)
    tokenizer: Tokenizer

    def build_head(self) -> nn.Module:
        """The head module in eval mode, with the checkpoint's weights."""
        head = head_module(self.config, self.spec, self.schema)
        head.load_state_dict(self.tensors_of("head"))
        return head.eval()

    def tensors_of(self, part: str) -> dict[str, torch.Tensor]:
        """The tensors of ``body_model`` or of ``head``, by their names in it."""
        prefix = f"{part}."
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def golden(self) -> list[GoldenRow]:
        """Reads ``golden.jsonl``.

        Raises:
            CheckpointError: a line breaks the contract; the message names it.
        """
        path = self.path / "golden.jsonl"
        rows = []
        text = _read_text(path).removesuffix("\n")
        # ``splitlines`` would also split at U+2028 and similar characters inside a text.
        for number, line in enumerate(text.split("\n") if text else [], start=1):
            try:
                row = GoldenRow.model_validate_json(line)
            except ValidationError as error:
                raise CheckpointError(f"{path}:{number}: {describe(error)}") from error
            if len(row.scores) != self.schema.width:
                raise CheckpointError(
                    f"{path}:{number}: scores must be {self.schema.width} numbers, got {len(row.scores)}"
                )
            if not all(math.isfinite(score) for score in row.scores):
                raise CheckpointError(f"{path}:{number}: scores must be finite numbers")
            rows.append(row)
        if not rows:
            raise CheckpointError(f"{path}: has no rows")
        return rows


def head_module(config: Mapping[str, Any], spec: Spec, schema: Schema) -> nn.Module:
    """A head with fresh weights; it sees the fields of `config` as attributes, as with transformers' GPT2Config."""
    attributes = dict(config) | {"hidden_size": config["n_embd"], "num_labels": schema.width}
    return build_head(spec.head_class, SimpleNamespace(**attributes), spec.layer2concat, spec.head_args)


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Reads and validates a checkpoint folder.

    Raises:
        CheckpointError: one line that names the file and the field or tensor, and what is allowed.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: is not a checkpoint folder{'' if path.exists() else '; it does not exist'}")
    config, body, spec, schema = _read_config(path / "config.json")
    tensors = _read_tensors(path / "model.safetensors", config, body, spec, schema)
    return Checkpoint(path, config, body, spec, schema, tensors, _read_tokenizer(path / "tokenizer.json", body))


def check_output(path: Path | str) -> None:
    """Checks that a checkpoint can be written to `path`, and that this replaces nothing but a checkpoint.

    Raises:
        CheckpointError: `path` holds something else, or its parent folder cannot be written to.
    """
    path = Path(path)
    if path.exists():
        try:
            is_ours = not any(path.iterdir()) or "polyhead" in json.loads(_read_text(path / "config.json"))
        except (OSError, CheckpointError, json.JSONDecodeError, TypeError):
            is_ours = False
        if not is_ours:
            raise CheckpointError(
                f"{path}: holds files that are no checkpoint, so it is not replaced; name another folder"
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


def write_checkpoint(
    path: Path | str,
    *,
    config: Mapping[str, Any],
    spec: Spec,
    schema: Schema,
    tensors: Mapping[str, torch.Tensor],
    tokenizer_json: str,
    golden: Sequence[GoldenRow],
    metrics: Mapping[str, Any],
    report: Mapping[str, bytes] | None = None,
    prove: Callable[[Path], object] = lambda _: None,
) -> None:
    """Writes a checkpoint folder, complete or not at all; replaces an older checkpoint at `path`.

    Args:
        config: the GPT-2 config; its ``polyhead`` section is made from `spec` and `schema`.
        tensors: float32, by the names ``body_model.*`` and ``head.*``.
        report: files of ``report/`` by name.
        prove: called with the finished folder before it is moved to `path`; if it raises, nothing is moved.

    Raises:
        CheckpointError: the folder cannot be written or read back. What `prove` raises passes through.
    """
    check_output(path)
    with replaced_folder(Path(path)) as fresh:
        section = spec.model_dump(mode="json") | {"heads": schema.to_json()}
        _write_json(fresh / "config.json", {**config, "polyhead": section})
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, fresh / "model.safetensors"
        )
        # safetensors creates the file with mode 0600, so another user's server could not read it.
        (fresh / "model.safetensors").chmod(0o644)
        (fresh / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        lines = [json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n" for row in golden]
        (fresh / "golden.jsonl").write_text("".join(lines), encoding="utf-8")
        _write_json(fresh / "metrics.json", metrics)
        (fresh / "report").mkdir()
        for name, content in (report or {}).items():
            (fresh / "report" / name).write_bytes(content)
        read_checkpoint(fresh).golden()
        prove(fresh)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def _read_config(path: Path) -> tuple[dict[str, Any], Body, Spec, Schema]:
    try:
        config = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error})") from error
    section = config.get("polyhead") if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: has no polyhead section; polyhead-train makes checkpoints")
    section = dict(section)
    try:
        if "heads" not in section:
            raise SchemaError("missing field 'heads'")
        schema = Schema.from_json(section.pop("heads"))
        spec = Spec.model_validate(section)
    except SchemaError as error:
        raise CheckpointError(f"{path}: polyhead: {error}") from error
    except ValidationError as error:
        raise CheckpointError(f"{path}: polyhead: {describe(error)}") from error
    try:
        body = Body.model_validate(config)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {describe(error)}") from error
    if spec.layer2concat is not None and not 1 <= spec.layer2concat <= body.n_layer:
        raise CheckpointError(
            f"{path}: polyhead: layer2concat must lie in 1 to n_layer ({body.n_layer}), got {spec.layer2concat}"
        )
    if spec.max_length > body.n_positions:
        raise CheckpointError(
            f"{path}: polyhead: max_length ({spec.max_length}) exceeds n_positions ({body.n_positions})"
        )
    return config, body, spec, schema


def _read_tensors(
    path: Path, config: dict[str, Any], body: Body, spec: Spec, schema: Schema
) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing")
    expected = {f"body_model.{name}": shape for name, shape in body.tensor_shapes().items()}
    head = head_module(config, spec, schema).state_dict()
    expected |= {f"head.{name}": tuple(tensor.shape) for name, tensor in head.items()}
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = {name for name in file.keys() if not name.endswith(MASK_BUFFERS)}  # noqa: SIM118
            if missing := sorted(set(expected) - names):
                raise CheckpointError(f"{path}: tensor {missing[0]!r} of shape {expected[missing[0]]} is missing")
            if unknown := sorted(names - set(expected)):
                raise CheckpointError(
                    f"{path}: tensor {unknown[0]!r} belongs to no part of the model that config.json describes"
                )
            for name, shape in expected.items():
                tensor = file.get_tensor(name)
                if tuple(tensor.shape) != shape:
                    raise CheckpointError(f"{path}: tensor {name!r} must have shape {shape}, got {tuple(tensor.shape)}")
                tensors[name] = tensor.float()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is damaged or not a safetensors file ({error})") from error
    return tensors


def _read_tokenizer(path: Path, body: Body) -> Tokenizer:
    text = _read_text(path)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{path}: is damaged or not a tokenizer ({error})") from error
    if tokenizer.get_vocab_size() > body.vocab_size:
        raise CheckpointError(
            f"{path}: has {tokenizer.get_vocab_size()} tokens, more than vocab_size ({body.vocab_size}) in config.json"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
