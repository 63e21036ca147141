"""``polyhead-import``: converts a checkpoint of that_nlp_library into one that describes itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field, ValidationError, field_validator

from polyhead.errors import PolyheadError, TemplateError, describe, one_line
from polyhead.schema import Architecture, Head, HeadKind, Schema
from polyhead.template import Template
from polyhead.windows import MOST_WINDOWS
from polyhead_rows.table_file import ReadOptions
from polyhead_training.command_line import command_app, example_option, one_line_errors, reference_option
from polyhead_training.config import DataConfig, ModelConfig, Section, read_toml
from polyhead_training.data.first_rows import check_texts
from polyhead_training.errors import ConfigError
from polyhead_training.model.hub import refuse_pickle

if TYPE_CHECKING:
    from polyhead.checkpoint import Spec

EXAMPLE = """\
architecture = "hidden_state_concat"   # GPT2HiddenStateConcatForSequenceClassification, or "base"
layer2concat = 4                       # hidden_state_concat only
is_multilabel = false                  # this and the lines down to head_args: the arguments of the constructor
is_multihead = true
head_class_sizes = [3, 1]              # 1 is a regression
head_class = "ConcatHeadSimple"        # or ConcatHeadExtended, "package.module:Class"; "Linear" with base
head_args = {}
max_length = 512                       # in tokens
texts = "reviews.csv"                  # a sample of these texts becomes the checkpoint's golden rows
text_column = "text"                   # or text_template = "[[{title}. ]]{body}"; the model then takes these fields

[[heads]]                              # one per entry of head_class_sizes; multilabel without multihead: one in all
name = "topic"
labels = ["news", "sport", "science"]  # in index order

[[heads]]
name = "stars"
"""

app = command_app("polyhead-import")


class ImportedHead(Section):
    """A head. Its kind follows from the constructor's arguments.

    Attributes:
        name: of the head in answers and metrics.
        labels: in index order; none for a regression.
    """

    name: str = Field(examples=["topic"])
    labels: tuple[str, ...] = Field(default=(), examples=[("news", "sport", "science")])


class ImportConfig(Section, ReadOptions):
    """The keys above the first table; names and defaults are those of that_nlp_library's constructors.

    Attributes:
        architecture: ``hidden_state_concat`` is GPT2HiddenStateConcatForSequenceClassification, ``base`` is
            GPT2BaseForSequenceClassification.
        layer2concat: how many hidden states the head reads; hidden_state_concat only.
        is_multilabel: the constructor's argument.
        is_multihead: the constructor's argument.
        head_class_sizes: the number of labels, or one per head; 1 is a regression.
        head_class: as in training.
        head_args: arguments of the head class.
        max_length: how many tokens the network reads at once.
        long_texts: as in training. The library truncates; in windows its model answers with the mean of their logits.
        window_overlap: as in training.
        most_windows: as in training.
        texts: files as for training. `golden_rows` of their texts are drawn at random.
        bad_rows: ``stop`` ends at the first row without a usable text; ``skip`` leaves such rows out.
        text_column: the column of the text.
        text_template: makes the texts the model was trained on, as in training. The checkpoint keeps it.
        any_text: as in training.
        golden_rows: how many texts with their scores the checkpoint keeps as a proof.
    """

    architecture: Architecture
    layer2concat: int = Field(default=4, ge=1)
    is_multilabel: bool = False
    is_multihead: bool = False
    head_class_sizes: int | list[int] = Field(examples=[[3, 1]])
    head_class: str | None = Field(default=None, examples=["ConcatHeadExtended"])
    head_args: dict[str, Any] = Field(default={}, examples=[{"classifier_dropout": 0.2}])
    max_length: int = Field(ge=1, examples=[512])
    long_texts: Literal["truncate", "windows"] = Field(default="truncate", examples=["windows"])
    window_overlap: int | None = Field(default=None, ge=0, examples=[64])
    most_windows: int = Field(default=8, ge=2, le=MOST_WINDOWS, examples=[16])
    texts: str | list[str] = Field(examples=["reviews.csv"])
    bad_rows: Literal["stop", "skip"] = "stop"
    text_column: str = Field(default="text", examples=["Review Text"])
    text_template: str | None = Field(default=None, examples=["[[{title}. ]]{body}"])
    any_text: bool = False
    golden_rows: int = Field(default=256, ge=1)
    heads: list[ImportedHead] = Field(min_length=1)

    @field_validator("text_template")
    @classmethod
    def _parse(cls, source: str | None) -> str | None:
        try:
            _ = None if source is None else Template(source)
        except TemplateError as error:
            raise ValueError(str(error)) from error
        return source


@app.command()
def import_folder(
    folder: Annotated[Path, typer.Argument(help="Folder with model.safetensors, config.json and a tokenizer.")],
    config: Annotated[Path, typer.Option(help="TOML file with the constructor's arguments and the heads.")],
    output: Annotated[Path, typer.Option(help="The checkpoint folder to write.")],
    example: Annotated[bool, example_option(EXAMPLE, "such a TOML file")] = False,
    reference: Annotated[bool, reference_option(ImportConfig)] = False,
) -> None:
    """Import a checkpoint of that_nlp_library. The result describes itself and can be exported like any other."""
    with one_line_errors("polyhead-import"):
        distance = import_checkpoint(folder, read_toml(config, ImportConfig), output)
    print(f"checkpoint: {output} (engine within {distance:.1e} of transformers)")
    print(f"next: polyhead-export {output} --repository model_repository")


def import_checkpoint(folder: Path, config: ImportConfig, output: Path) -> float:
    """Writes the checkpoint and returns the engine's largest distance from transformers on the golden rows.

    Raises:
        ConfigError, CheckpointError, DataError: the folder, the arguments and the heads do not fit together.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        refuse_pickle(folder)
        raise ConfigError(f"{weights}: is missing")
    options = config.model_dump(include=ImportConfig.model_fields.keys() & DataConfig.model_fields.keys())
    try:
        data = DataConfig(train=config.texts, **options)
        shape = ModelConfig.model_validate(config.model_dump(include=set(ModelConfig.model_fields)))
    except ValidationError as error:
        raise ConfigError(describe(error)) from error
    check_texts(config.texts, data)
    # Imported here because torch and transformers take seconds; a mistake must be reported before.
    from polyhead.checkpoint import check_output
    from polyhead_training.data.corpus import read_texts
    from polyhead_training.fitting.checkpoint_writing import Fitted, write_unscored
    from polyhead_training.model.body import checkpoint_spec
    from polyhead_training.model.tokenizer import pretrained_tokenizer

    check_output(output)
    schema = imported_schema(config)
    spec = checkpoint_spec(shape, config.text_template)
    model = _model(folder, weights, spec, schema)
    with tempfile.TemporaryDirectory(prefix="polyhead-import-") as scratch:
        sample = read_texts(config.texts, data, Path(scratch))
        fitted = Fitted(model, spec, schema, pretrained_tokenizer(str(folder)))
        return write_unscored(
            output, fitted, sample.texts, rows=config.golden_rows, seed=0, template_fields=sample.template_fields
        )


def imported_schema(config: ImportConfig) -> Schema:
    """The heads, with the kinds that the constructor's arguments mean.

    Raises:
        ConfigError: the number of heads or labels is not what head_class_sizes says.
    """
    from polyhead_training.model.losses import constructor_loss_terms

    sizes = [config.head_class_sizes] if isinstance(config.head_class_sizes, int) else config.head_class_sizes
    if len(sizes) > 1 and not (config.is_multihead or config.is_multilabel):
        raise ConfigError(f"head_class_sizes: {sizes} means several heads, but is_multihead is false")
    terms = constructor_loss_terms(config.is_multilabel, config.is_multihead, sizes, [1.0] * len(sizes))
    if len(config.heads) != len(terms):
        raise ConfigError(
            f"heads: head_class_sizes {sizes} with is_multilabel = {config.is_multilabel} and is_multihead = "
            f"{config.is_multihead} mean {len(terms)} heads, got {len(config.heads)}"
        )
    heads = []
    for head, term in zip(config.heads, terms, strict=True):
        expected = 0 if term.kind == HeadKind.REGRESSION else term.width
        if len(head.labels) != expected:
            raise ConfigError(
                f"heads: {head.name!r} is {term.kind} of size {term.width} and needs {expected} labels, "
                f"got {len(head.labels)}"
            )
        try:
            heads.append(Head(name=head.name, kind=term.kind, labels=head.labels))
        except ValidationError as error:
            raise ConfigError(f"heads: {head.name!r}: {describe(error)}") from error
    return Schema(heads)


def _model(folder: Path, weights: Path, spec: Spec, schema: Schema) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import GPT2Config

    from polyhead.weights import MASK_BUFFERS, finite_tensor
    from polyhead_training.model.modeling import build_model

    try:
        tensors = load_file(weights)
        config = GPT2Config.from_pretrained(folder)
        _check_size(weights, config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        model = build_model(config, spec, schema)
    except PolyheadError:
        raise
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{folder}: cannot be read ({one_line(error)})") from error
    except Exception as error:  # transformers, torch and head classes refuse their arguments with many kinds
        raise ConfigError(f"{folder}: the arguments do not fit ({one_line(error)})") from error
    tensors = {
        name: finite_tensor(weights, name, tensor.float())
        for name, tensor in tensors.items()
        if not name.endswith(MASK_BUFFERS)
    }
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ConfigError(
                f"{weights}: tensor {name!r} has shape {found.get(name, 'none, it is missing')}, the arguments mean "
                f"{expected.get(name, 'that there is none')}"
            )
    model.load_state_dict(tensors)
    model.train(False)
    return model


def _check_size(weights: Path, config: Any, found: dict[str, tuple[int, ...]]) -> None:
    """Compares the body's tensors with the config, before anything is built of the size that the config names."""
    from polyhead.body import Body

    for name, shape in Body.model_validate(config.to_dict()).tensor_shapes():
        if found.get(f"body_model.{name}") != shape:
            raise ConfigError(
                f"{weights}: tensor 'body_model.{name}' has shape {found.get(f'body_model.{name}', 'none (missing)')}"
                f", config.json means {shape}"
            )


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
