"""docs/config.md: the reference of all config keys, and what an unknown key is answered."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from polyhead_training import import_checkpoint, train_command
from polyhead_training.config import TrainingConfig
from polyhead_training.config_keys import nearest, sections
from polyhead_training.import_checkpoint import ImportConfig
from polyhead_training.reference import config_reference, example, markdown, meanings, toml, words
from polyhead_training.reference_page import page
from tests.test_arrows import ROOT


def keys() -> Iterator[tuple[type[BaseModel], str, FieldInfo]]:
    """Each key of both files that is no table of its own."""
    for root in (TrainingConfig, ImportConfig):
        tables = dict.fromkeys(model for _, model in sections(root))
        for model in tables:
            for name, field in model.model_fields.items():
                if not any(inner.__name__ in str(field.annotation) for inner in tables):
                    yield model, name, field


def named(value: Any) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", "")


def test_the_page_is_current() -> None:
    """`make reference` would write what is there."""
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == page(), "run make reference"


@pytest.mark.parametrize(("model", "name", "field"), list(keys()), ids=named)
def test_a_key_has_a_meaning_and_a_valid_example(model: type[BaseModel], name: str, field: FieldInfo) -> None:
    """Each example is accepted as it stands in the page."""
    assert meanings(model)[name][-1] in ".)"
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation  # type: ignore[name-defined]
    for value in field.examples or [example(field)]:
        read = tomllib.loads(f"{name} = {toml(value)}")[name]
        TypeAdapter(kind).validate_python(read)


def test_no_meaning_is_of_no_key() -> None:
    """A key that was renamed or removed leaves nothing behind."""
    for root in (TrainingConfig, ImportConfig):
        for _, model in sections(root):
            assert meanings(model).keys() <= model.model_fields.keys()


def test_the_tables_of_the_file_are_found() -> None:
    """With the headers that TOML gives them."""
    places = [place for place, _ in sections(TrainingConfig)]
    assert places[0] == ""
    assert {"[data]", "[[data.upsample]]", "[[heads]]", "[training.early_stopping]", "[lora]"} <= set(places)
    assert [place for place, _ in sections(ImportConfig)] == ["", "[[heads]]"]


def test_a_row_says_all_about_a_key() -> None:
    """Type, bounds, default, example and meaning."""
    text = config_reference(TrainingConfig)
    assert "| `epochs` | number above 0 | `3` | `epochs = 3` | How often each row is read. |" in text
    assert '| `split` | `"hash"`, `"stratified"`, `"group"` or `"time"` | `"hash"` | `split = "stratified"` | ' in text
    assert '| `output` | path | required | `output = "runs/reviews"` | ' in text
    assert "| `pattern` | text |  | `pattern = '#(\\w+)'` | " in text
    assert '| `train` | text or list of texts |  | `train = "reviews.csv"` | ' in text
    assert "| `y_range` | list of 2 numbers |  | `y_range = [1.0, 5.0]` | " in text


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int | None, "whole number"),
        (dict[str, float], "table of number"),
        (dict[str, Any], "table"),
        (list[str] | str | None, "list of texts or text"),
        (tuple[str, ...], "list of texts"),
        (bool, "`true` or `false`"),
    ],
)
def test_types_in_words(annotation: Any, expected: str) -> None:
    """As a reader of TOML calls them."""
    assert words(annotation) == expected


@pytest.mark.parametrize(
    "value", [1, 0.5, 1e-05, True, "a\"b'c\\d\n", "\\d+", ["x", 1], {"a b": {"c": [True]}}, [], {}, "…"]
)
def test_values_are_written_as_toml_reads_them(value: Any) -> None:
    """Also quotes, backslashes, line breaks and keys with blanks."""
    assert tomllib.loads(f"key = {toml(value)}")["key"] == value


def test_docstrings_become_markdown() -> None:
    """Code spans have one backtick; a bar does not end a cell."""
    assert markdown("one ``a|b`` two\n  three") == "one `a\\|b` two three"


def test_the_commands_print_it() -> None:
    """--reference needs no other argument."""
    for app, key in ((train_command.app, "`learning_rate`"), (import_checkpoint.app, "`head_class_sizes`")):
        result = CliRunner().invoke(app, ["--reference"])
        assert result.exit_code == 0
        assert key in result.stdout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("epoch", "epochs"),
        ("Learning-Rate", "learning_rate"),
        ("num_train_epochs", "epochs"),
        ("per_device_train_batch_size", "batch_size"),
        ("xyz", None),
    ],
)
def test_the_nearest_key(name: str, expected: str | None) -> None:
    """Misspelt, spelled otherwise, or as transformers calls it."""
    assert nearest(name, ["epochs", "batch_size", "learning_rate", "lr_scheduler_type"]) == expected
