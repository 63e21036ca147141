"""The checkpoint: a folder that describes itself. Only this module reads and writes it.

``config.json`` (a GPT-2 config plus one ``polyhead`` section), ``model.safetensors``, perhaps ``ngrams.safetensors``,
``tokenizer.json``, ``golden.jsonl``, ``metrics.json``, perhaps ``distribution.json``, ``report/``. No pickled file is
ever read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from polyhead.body import Body
from polyhead.checkpoint_files import DISTRIBUTION, NGRAMS, parse_json, read_config, read_json, read_text
from polyhead.distribution import Distribution
from polyhead.errors import CheckpointError, SchemaError, TemplateError, describe, one_line, shortened
from polyhead.files import replaced_file, replaced_folder
from polyhead.golden import GoldenRow, complete_rows, prove_view, read_rows, row_line
from polyhead.heads import build_head, head_shapes
from polyhead.ngrams import NGrams, read_ngrams, write_ngrams
from polyhead.schema import MAY_LACK, Architecture, Schema
from polyhead.template import Template
from polyhead.weights import read_weights
from polyhead.windows import LongTexts, Windows

# Heads of formats 1 and 2 have no target_scale. Below 4, heads have no reject_below, and models no n-grams or windows.
FORMAT = 4
NEW_IN_4 = ("long_texts", "ngrams")  # fields of the spec
PROVED_FORMAT = 2  # from here on, golden rows hold what a caller sees. Format 1 has no number
MOST_TEMPLATE = 65_536  # characters
MOST_ADDED_TOKENS = 20_000  # of a tokenizer; models in use have up to a few thousand
# Fields of the polyhead section. At the top level of config.json they would have no effect. transformers wrote a
# max_length of its own there.
OURS = frozenset(
    {"architecture", "layer2concat", "head_class", "head_args", "text_template", "long_texts", "ngrams", "heads"}
)


class Spec(BaseModel):
    """The ``polyhead`` section without its heads: how hidden states become logits.

    Attributes:
        architecture: ``base`` reads the last hidden state, ``hidden_state_concat`` the last `layer2concat` ones.
        layer2concat: for ``hidden_state_concat``, 1 to n_layer + 1, which adds the embeddings; else None.
        head_class: ``Linear``, ``ConcatHeadSimple``, ``ConcatHeadExtended`` or ``package.module:Class``.
        head_args: keyword arguments of `head_class`.
        max_length: how many tokens the network reads at once.
        text_template: makes a text of a row's fields, see `polyhead.template`; None if the model takes texts only.
            Checkpoints that were written before there were templates lack it.
        ngrams: whether ``ngrams.safetensors`` adds its logits to the network's; checkpoints below format 4 lack it.
        long_texts: the windows of longer texts; None if their rest is not read, as in formats below 4.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    architecture: Architecture
    layer2concat: int | None
    head_class: str
    head_args: dict[str, Any]
    max_length: int = Field(gt=0)
    text_template: str | None = Field(default=None, max_length=MOST_TEMPLATE)
    ngrams: bool = False
    long_texts: LongTexts | None = None

    @model_validator(mode="after")
    def _check(self) -> Spec:
        if (self.architecture == "hidden_state_concat") != (self.layer2concat is not None):
            raise ValueError("layer2concat: must be a number for architecture hidden_state_concat and null for base")
        if self.architecture == "hidden_state_concat" and self.head_class == "Linear":
            raise ValueError(
                "head_class: Linear is for architecture base; for hidden_state_concat take ConcatHeadSimple"
            )
        if self.long_texts is not None and self.long_texts.stride > self.max_length:
            raise ValueError(
                f"long_texts: stride ({self.long_texts.stride}) must be at most max_length ({self.max_length})"
            )
        try:
            _ = self.template
        except TemplateError as error:
            raise ValueError(f"text_template: {error}") from error
        return self

    @property
    def windows(self) -> Windows:
        """How texts are cut."""
        return Windows.of(self.max_length, self.long_texts)

    @property
    def template(self) -> Template | None:
        """The parsed `text_template`."""
        return None if self.text_template is None else Template(self.text_template)


@dataclass(frozen=True)
class Checkpoint:
    """The folder's content, validated: every tensor is present, finite, float32 and of the right shape.

    Attributes:
        config: the content of config.json.
        distribution: of its answers to validation rows; None in imported models and those of older releases.
    """

    path: Path
    config: dict[str, Any] = field(repr=False)
    body: Body
    spec: Spec
    schema: Schema
    tensors: dict[str, torch.Tensor] = field(repr=False)
    tokenizer: Tokenizer
    ngrams: NGrams | None = None
    distribution: Distribution | None = field(default=None, repr=False)

    def build_head(self) -> nn.Module:
        """The head module in eval mode, with the checkpoint's weights."""
        head = head_module(self.config, self.spec, self.schema)
        head.load_state_dict(self.tensors_of("head"))
        return head.eval()

    def tensors_of(self, part: str) -> dict[str, torch.Tensor]:
        """The tensors of ``body_model`` or of ``head``, by their names in it."""
        prefix = f"{part}."
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    @property
    def section(self) -> dict[str, Any]:
        """The ``polyhead`` section of config.json, as it is there."""
        section: dict[str, Any] = self.config["polyhead"]
        return section

    @property
    def unproved(self) -> str | None:
        """What its golden rows do not prove, in one line; None if they prove all that a caller sees."""
        if self.section.get("format", 1) >= PROVED_FORMAT:
            return None
        return (
            f"{self.path}: is of format 1, whose golden rows hold only scores. They do not prove the labels, "
            "thresholds and template in its config.json. polyhead-golden --accept-config writes rows that do"
        )

    def golden(self) -> list[GoldenRow]:
        """Reads ``golden.jsonl``; its rows prove what a caller sees of their scores, see `polyhead.golden`.

        Raises:
            CheckpointError: a line breaks the contract, or contradicts config.json; the message names it.
        """
        path = self.path / "golden.jsonl"
        rows = read_rows(path, self.schema.width)
        prove_view(rows, path, self.section, self.schema, self.spec.template, is_complete=self.unproved is None)
        return rows


def head_module(config: Mapping[str, Any], spec: Spec, schema: Schema) -> nn.Module:
    """A head with fresh weights; it sees the fields of `config` as attributes, as with transformers' GPT2Config."""
    return build_head(spec.head_class, _attributes(config, schema), spec.layer2concat, spec.head_args)


def _attributes(config: Mapping[str, Any], schema: Schema) -> SimpleNamespace:
    return SimpleNamespace(**dict(config) | {"hidden_size": config["n_embd"], "num_labels": schema.width})


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Reads and validates a checkpoint folder.

    Raises:
        CheckpointError: one line that names the file and the field or tensor, and what is allowed.
    """
    path = Path(path)
    config, body, spec, schema = _read_config(path / "config.json")
    tensors = read_weights(
        path / "model.safetensors",
        body,
        lambda: head_shapes(spec.head_class, _attributes(config, schema), spec.layer2concat, spec.head_args),
    )
    ngrams = read_ngrams(path / NGRAMS, schema.width) if spec.ngrams else None
    tokenizer = _read_tokenizer(path / "tokenizer.json", body)
    found = path / DISTRIBUTION
    distribution = Distribution.read(found, schema) if found.exists() else None
    return Checkpoint(path, config, body, spec, schema, tensors, tokenizer, ngrams, distribution)


def check_output(path: Path | str) -> None:
    """Checks that a checkpoint can be written to `path`, and that this replaces nothing but a checkpoint.

    Raises:
        CheckpointError: `path` holds something else, or its parent folder cannot be written to.
    """
    path = Path(path)
    if path.exists():
        try:
            is_ours = not any(path.iterdir()) or "polyhead" in read_json(path / "config.json")
        except (OSError, CheckpointError, TypeError):
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
    ngrams: NGrams | None = None,
    golden: Sequence[GoldenRow],
    metrics: Mapping[str, Any],
    report: Mapping[str, bytes] | None = None,
    prove: Callable[[Path], object] = lambda _: None,
) -> None:
    """Writes a checkpoint folder, complete or not at all; replaces an older checkpoint at `path`.

    Args:
        config: the GPT-2 config; its ``polyhead`` section is made from `spec` and `schema`.
        golden: their answers are made from their scores and `schema`.
        tensors: float32, by the names ``body_model.*`` and ``head.*``.
        report: files of ``report/`` by name.
        prove: called with the finished folder before it is moved to `path`; if it raises, nothing is moved.

    Raises:
        CheckpointError: the folder cannot be written or read back. What `prove` raises passes through.
    """
    check_output(path)
    with replaced_folder(Path(path)) as fresh:
        spec = spec.model_copy(update={"ngrams": ngrams is not None})
        section = {"format": FORMAT} | spec.model_dump(mode="json") | {"heads": schema.to_json()}
        _write_json(fresh / "config.json", {**config, "polyhead": section})
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, fresh / "model.safetensors"
        )
        # safetensors creates the file with mode 0600, so another user's server could not read it.
        (fresh / "model.safetensors").chmod(0o644)
        if ngrams is not None:
            write_ngrams(fresh / NGRAMS, ngrams)
        (fresh / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        _write_golden(fresh / "golden.jsonl", golden, section, schema)
        _write_json(fresh / "metrics.json", metrics)
        (fresh / "report").mkdir()
        for name, content in (report or {}).items():
            (fresh / "report" / name).write_bytes(content)
        read_checkpoint(fresh).golden()
        prove(fresh)


def _read_config(path: Path) -> tuple[dict[str, Any], Body, Spec, Schema]:
    config = read_config(path.parent)
    section = config.get("polyhead") if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: has no polyhead section; polyhead-train makes checkpoints")
    section = dict(section)
    number = section.pop("format", 1)
    if type(number) is not int or not 1 <= number <= FORMAT:
        raise CheckpointError(
            f"{path}: polyhead: format must be 1 to {FORMAT}, got {shortened(number)}; update polyhead"
        )
    if missing := [name for name in NEW_IN_4 if number >= 4 and name not in section]:
        raise CheckpointError(f"{path}: polyhead: missing field {missing[0]!r}")
    if misplaced := [name for name in config if name in OURS or (name.startswith("polyhead") and name != "polyhead")]:
        raise CheckpointError(
            f"{path}: {shortened(misplaced[0])}: unknown field; the fields of Polyhead are in its polyhead section"
        )
    try:
        if "heads" not in section:
            raise SchemaError("missing field 'heads'")
        schema = Schema.from_json(section.pop("heads"), MAY_LACK if number < FORMAT else frozenset())
        spec = Spec.model_validate(section)
    except SchemaError as error:
        raise CheckpointError(f"{path}: polyhead: {error}") from error
    except ValidationError as error:
        raise CheckpointError(f"{path}: polyhead: {describe(error)}") from error
    try:
        body = Body.model_validate(config)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {describe(error)}") from error
    if spec.layer2concat is not None and not 1 <= spec.layer2concat <= body.n_layer + 1:
        raise CheckpointError(
            f"{path}: polyhead: layer2concat must lie in 1 to n_layer + 1 ({body.n_layer + 1}), got {spec.layer2concat}"
        )
    if spec.max_length > body.n_positions:
        raise CheckpointError(
            f"{path}: polyhead: max_length ({spec.max_length}) exceeds n_positions ({body.n_positions})"
        )
    return config, body, spec, schema


def _read_tokenizer(path: Path, body: Body) -> Tokenizer:
    text = read_text(path)
    content = parse_json(path, text)
    added = content.get("added_tokens") if isinstance(content, dict) else None
    if isinstance(added, list) and len(added) > MOST_ADDED_TOKENS:
        raise CheckpointError(f"{path}: has {len(added)} added tokens, at most {MOST_ADDED_TOKENS} are read")
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        ids = [*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("a").ids]
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{path}: is damaged or not a tokenizer ({one_line(error)})") from error
    if (size := tokenizer.get_vocab_size()) > body.vocab_size:
        raise CheckpointError(f"{path}: has {size} tokens, more than vocab_size ({body.vocab_size}) in config.json")
    if max(ids, default=0) >= body.vocab_size:
        raise CheckpointError(
            f"{path}: has a token with id {max(ids)}; ids must be below vocab_size ({body.vocab_size}) in config.json"
        )
    return tokenizer


def renew_golden(checkpoint: Checkpoint, rows: Sequence[GoldenRow]) -> None:
    """Replaces the golden rows of a checkpoint folder, and makes it one of the newest format."""
    spec = checkpoint.spec.model_dump(mode="json", include=set(NEW_IN_4))
    newest = {"format": FORMAT} | spec | {"heads": checkpoint.schema.to_json()}
    config = checkpoint.config | {"polyhead": checkpoint.section | newest}
    # If the process is killed between the two, the golden rows are refused, and this can be done again.
    with replaced_file(checkpoint.path / "config.json") as part:
        _write_json(part, config)
    with replaced_file(checkpoint.path / "golden.jsonl") as part:
        _write_golden(part, rows, config["polyhead"], checkpoint.schema)


def _write_golden(path: Path, rows: Sequence[GoldenRow], section: Mapping[str, Any], schema: Schema) -> None:
    lines = [row_line(row) for row in complete_rows(rows, section, schema)]
    path.write_text("".join(lines), encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
