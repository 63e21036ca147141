"""``polyhead-import``: makes a self-describing checkpoint of that_nlp_library's folder and constructor arguments."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from polyhead.checkpoint import MASK_BUFFERS, Architecture, Spec, check_output
from polyhead.errors import PolyheadError, describe, one_line
from polyhead.schema import Head, HeadKind, Schema
from polyhead_training.config import DataConfig, ModelConfig, read_toml
from polyhead_training.errors import ConfigError
from polyhead_training.example import example_option
from polyhead_training.model.pickled import refuse_pickle

EXAMPLE = """\
architecture = "hidden_state_concat"   # GPT2HiddenStateConcatForSequenceClassification, or "base"
layer2concat = 4                       # hidden_state_concat only
is_multilabel = false                  # from here to head_args as they were given to the class's constructor
is_multihead = true
head_class_sizes = [3, 1]              # 1 is a regression
head_class = "ConcatHeadSimple"        # or ConcatHeadExtended, "package.module:Class"; "Linear" with base
head_args = {}
max_length = 512                       # in tokens
texts = "reviews.csv"                  # a sample of these become the checkpoint's golden rows
text_column = "text"

[[heads]]                              # one for each of head_class_sizes; multilabel without multihead: one for all
name = "topic"
labels = ["news", "sport", "science"]  # in index order

[[heads]]
name = "stars"
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class ImportedHead(BaseModel):
    """A head's name and labels in index order; its kind follows from the constructor's arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    labels: list[str] = []


class ImportConfig(BaseModel):
    """The whole file; names and defaults are those of the seed's constructors.

    Attributes:
        texts: files as for training, of which `golden_rows` texts are drawn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture
    layer2concat: int = Field(default=4, ge=1)
    is_multilabel: bool = False
    is_multihead: bool = False
    head_class_sizes: int | list[int]
    head_class: str | None = None
    head_args: dict[str, Any] = {}
    max_length: int = Field(ge=1)
    texts: str | list[str]
    text_column: str = "text"
    golden_rows: int = Field(default=256, ge=1)
    heads: list[ImportedHead] = Field(min_length=1)


@app.command()
def import_seed(
    folder: Annotated[Path, typer.Argument(help="Folder with model.safetensors, config.json and a tokenizer.")],
    config: Annotated[Path, typer.Option(help="TOML file with the constructor's arguments and the heads.")],
    output: Annotated[Path, typer.Option(help="The checkpoint folder to write.")],
    example: Annotated[bool, example_option(EXAMPLE, "such a TOML file")] = False,
) -> None:
    """Import a that_nlp_library checkpoint once; from then on it describes itself, and is exported as any other."""
    try:
        distance = import_checkpoint(folder, read_toml(config, ImportConfig), output)
    except PolyheadError as error:
        print(f"polyhead-import: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(f"checkpoint: {output} (engine within {distance:.1e} of transformers)")
    print(f"next: polyhead-export {output} --repository model_repository")


def import_checkpoint(folder: Path, config: ImportConfig, output: Path) -> float:
    """Writes the checkpoint; returns the engine's distance from transformers on its golden rows.

    Raises:
        ConfigError, CheckpointError, DataError: the folder, the arguments and the heads do not fit each other.
    """
    check_output(output)
    weights = _weights_file(folder)
    schema = imported_schema(config)
    # Here, since they import transformers.
    from polyhead_training.data.texts import read_texts
    from polyhead_training.fitting.written import Fitted, write
    from polyhead_training.model.body import checkpoint_spec
    from polyhead_training.model.tokenizer import pretrained_tokenizer

    spec = checkpoint_spec(ModelConfig.model_validate(config.model_dump(include=set(ModelConfig.model_fields))))
    model = _model(folder, weights, spec, schema)
    with tempfile.TemporaryDirectory(prefix="polyhead-import-") as scratch:
        data = DataConfig(train=config.texts, text_column=config.text_column)
        texts = read_texts(config.texts, data, Path(scratch))
        fitted = Fitted(model, spec, schema, pretrained_tokenizer(str(folder)))
        return write(output, fitted, texts, rows=config.golden_rows, seed=0)


def imported_schema(config: ImportConfig) -> Schema:
    """The heads, of the kinds that the seed's constructor arguments mean.

    Raises:
        ConfigError: names or labels are not as many as head_class_sizes says.
    """
    from polyhead_training.model.losses import seed_loss_terms

    sizes = [config.head_class_sizes] if isinstance(config.head_class_sizes, int) else config.head_class_sizes
    if len(sizes) > 1 and not (config.is_multihead or config.is_multilabel):
        raise ConfigError(f"head_class_sizes: {sizes} are several heads, and is_multihead is false")
    terms = seed_loss_terms(config.is_multilabel, config.is_multihead, sizes, [1.0] * len(sizes))
    if len(config.heads) != len(terms):
        raise ConfigError(
            f"heads: head_class_sizes {sizes} with is_multilabel = {config.is_multilabel} and is_multihead = "
            f"{config.is_multihead} mean {len(terms)} heads, got {len(config.heads)}"
        )
    heads = []
    for head, term in zip(config.heads, terms, strict=True):
        kind: HeadKind = term.kind
        expected = 0 if kind == "regression" else term.width
        if len(head.labels) != expected:
            raise ConfigError(
                f"heads: {head.name!r} is {kind} of size {term.width} and needs {expected} labels, "
                f"got {len(head.labels)}"
            )
        try:
            heads.append(Head(name=head.name, kind=kind, labels=tuple(head.labels)))
        except ValidationError as error:
            raise ConfigError(f"heads: {head.name!r}: {describe(error)}") from error
    return Schema(heads)


def _weights_file(folder: Path) -> Path:
    weights = folder / "model.safetensors"
    if weights.is_file():
        return weights
    refuse_pickle(folder)
    raise ConfigError(f"{weights}: is missing")


def _model(folder: Path, weights: Path, spec: Spec, schema: Schema) -> Any:
    from transformers import GPT2Config

    from polyhead_training.model.modeling import build_model

    try:
        tensors = load_file(weights)
        model = build_model(GPT2Config.from_pretrained(folder), spec, schema)
    except PolyheadError:
        raise
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{folder}: cannot be read ({one_line(error)})") from error
    except Exception as error:  # transformers, torch and head classes refuse their arguments with many kinds
        raise ConfigError(f"{folder}: the arguments do not fit ({one_line(error)})") from error
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(MASK_BUFFERS)}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ConfigError(
                f"{weights}: tensor {name!r} has shape {found.get(name, 'none, it is missing')}, the arguments mean "
                f"{expected.get(name, 'that there is none')}"
            )
    model.load_state_dict(tensors)
    return model.eval()


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
