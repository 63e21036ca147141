"""The recipe: how a row of a file becomes a text and label cells, and the numbers that splitting needs."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Collection, Sequence

import pyarrow

from polyhead.encode import read_text
from polyhead.errors import TemplateError
from polyhead.schema import HeadKind, Schema
from polyhead.template import FieldError, Template, as_text, fields_json
from polyhead_rows.table import value_at
from polyhead_rows.table_file import BadText, Row, text_of
from polyhead_rows.text_kinds import TextKinds
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.cells import CellReader
from polyhead_training.data.functions import UserFunction
from polyhead_training.data.groups import group_name
from polyhead_training.data.sources import Fields
from polyhead_training.data.times import TimeReader
from polyhead_training.errors import BadRowError, ConfigError
from polyhead_training.model.tokenizer import TRANSFORMS, named_normalizer

OUT_OF_SCOPE = "out_of_scope"  # the column with the heads that have no label for a row


class Recipe:
    """How a row becomes a text and label cells. The functions that the config names are imported once.

    Args:
        without: for evaluation: the heads that are left out. Their columns are not read.
        schema: for evaluation: what the model answers is a label, even if it looks like a text that means unknown.

    Raises:
        ConfigError: a function or transform is unknown, or the template is malformed.
    """

    def __init__(
        self,
        config: DataConfig,
        heads: Sequence[HeadConfig],
        metadata: Sequence[str] = (),
        without: Collection[str] | None = None,
        schema: Schema | None = None,
    ) -> None:
        self.config = config
        self.is_evaluation = without is not None
        self.without = frozenset(without or ())
        self.readers = [CellReader(head, () if schema is None else schema[head.name].labels) for head in heads]
        self.metadata = list(metadata)
        self.cells = [f"cell_{i}" for i in range(len(heads))]
        self.template = _template(config)
        self.where = {key: [value] if isinstance(value, str) else value for key, value in config.where.items()}
        self.filters = [UserFunction.named(name, "data.filters") for name in config.filters]
        self.transforms = [
            UserFunction.named(name, "data.text_transforms", tuple(TRANSFORMS))
            for name in config.text_transforms
            if name not in TRANSFORMS
        ]
        self.idle_upsample = list(config.upsample)  # those for which no row was found yet
        by_time = config.split == "time" and config.time_column is not None and not self.is_evaluation
        self.times = TimeReader(config.time_column or "") if by_time else None
        self.has_groups = config.split == "group" and not self.is_evaluation
        self._normalizer = named_normalizer(config.text_transforms)
        self.texts = TextKinds(config.text_column)
        self._splitters = {
            reader.column: reader for reader in self.readers if reader.config.kind == HeadKind.MULTI_LABEL
        }

    @classmethod
    def of_evaluation(
        cls,
        config: DataConfig,
        schema: Schema,
        heads: Sequence[HeadConfig],
        metadata: Sequence[str],
        without: Collection[str],
    ) -> Recipe:
        """Cells are read as the config says, or else from columns that are named like the heads of the schema."""
        by_name = {head.name: head for head in heads}
        configs = [by_name.get(head.name) or HeadConfig(name=head.name, kind=head.kind) for head in schema]
        # An id without a name is a label that training never saw.
        keep = {"unnamed": "keep"}
        configs = [head if head.names is None else head.model_copy(update=keep) for head in configs]
        return cls(config, configs, metadata, without, schema)

    @property
    def columns(self) -> list[str]:
        """Those that every source must have, without the heads' columns."""
        text = [self.config.text_column] if self.template is None else list(self.template.fields)
        return [*text, *self.where, *self.metadata]

    @property
    def head_columns(self) -> list[str]:
        """Those of the heads that are not left out."""
        return [column for reader in self.readers if self._is_read(reader) for column in reader.columns]

    def _is_read(self, reader: CellReader) -> bool:
        return reader.config.name not in self.without

    def hint(self, column: str) -> str:
        """What to say if this column is missing."""
        if self.template is not None and column in self.template.fields:
            return f"; text_template needs {', '.join(map(repr, self.template.fields))}"
        head = next((reader.config.name for reader in self.readers if column in reader.columns), None)
        if not self.is_evaluation or head is None:
            return ""
        return (
            f"; it must hold the labels of head {head!r}: --without {shlex.quote(head)} leaves this head out, and a "
            "config in --config names another column"
        )

    @property
    def schema(self) -> pyarrow.Schema:
        """The types of staged rows."""
        kinds = {HeadKind.REGRESSION: pyarrow.float64()}
        return pyarrow.schema(
            [
                ("text", pyarrow.string()),
                ("file", pyarrow.int32()),
                ("row", pyarrow.int64()),
                ("line", pyarrow.int64()),
                ("text_key", pyarrow.int64()),
                ("row_key", pyarrow.int64()),
                ("place", pyarrow.float64()),
                ("times", pyarrow.int32()),
            ]
            + ([] if self.template is None else [("template_fields", pyarrow.string())])
            + ([("group", pyarrow.string())] if self.has_groups else [])
            + ([] if self.times is None else [("time", pyarrow.float64()), ("time_is_number", pyarrow.bool_())])
            + [
                (f"cell_{i}", kinds.get(reader.config.kind, pyarrow.list_(pyarrow.string())))
                for i, reader in enumerate(self.readers)
            ]
            + [(f"metadata_{i}", pyarrow.string()) for i in range(len(self.metadata))]
            + ([(OUT_OF_SCOPE, pyarrow.list_(pyarrow.string()))] if self.has_scope else [])
        )

    @property
    def has_scope(self) -> bool:
        """Whether rows may be out of the scope of a head."""
        return any(reader.config.out_of_scope is not None for reader in self.readers)

    def read(self, row: Row, place: str, also: Collection[str] = ()) -> Fields | None:
        """The staged row without its place; None if ``where`` and ``filters`` leave it out.

        Args:
            also: columns that only some sources need; if the time column is one of them, no cell of it may be empty.

        Raises:
            BadRowError: it cannot be read, has no text, or a cell does not fit its head.
            UnreadableTextError: its text is blank.
        """
        config, fields = self.config, row.fields
        if fields is None:
            raise BadRowError(f"{place}: {row.reason}")
        if not all(self._holds(fields, column, values) for column, values in self.where.items()):
            return None
        if not all(keep.call(fields, place=place) for keep in self.filters):
            return None
        source = text = read_text(self._text(row, fields, place))
        for transform in self.transforms:
            text = transform.text(text, place=place)
        text = read_text(text)
        cells = [reader.read_row(fields, place) if self._is_read(reader) else None for reader in self.readers]
        split_by = as_text(value_at(fields, config.split_column)) if config.split_column is not None else None
        if self.has_groups:
            column = config.group_column or ""
            split_by = _storable(group_name(value_at(fields, column), place, column))
        time, is_number = None, False
        if self.times is not None:
            cell = value_at(fields, self.times.column)
            time, is_number = self.times.read(cell, place, is_needed=self.times.column in also)
        folded = self._folded(text)
        upsample = [up for up in config.upsample if self._holds(fields, up.column, up.values)]
        self.idle_upsample = [up for up in self.idle_upsample if up not in upsample]
        return {
            "text": text,
            "text_key": _key(folded),
            "row_key": _key(repr((folded, [sorted(cell) if isinstance(cell, list) else cell for cell in cells]))),
            "place": _fraction(_fold(source) if split_by is None else split_by),
            "times": max((up.times for up in upsample), default=1),
            **({} if self.template is None else {"template_fields": fields_json(fields, self.template.fields)}),
            **({"group": split_by} if self.has_groups else {}),
            **({} if self.times is None else {"time": time, "time_is_number": is_number}),
            **{f"cell_{i}": cell for i, cell in enumerate(cells)},
            **{f"metadata_{i}": _storable(as_text(value_at(fields, name))) for i, name in enumerate(self.metadata)},
            **({OUT_OF_SCOPE: self._out_of_scope(fields)} if self.has_scope else {}),
        }

    def _out_of_scope(self, fields: Fields) -> list[str]:
        """The heads that have no label for the row."""
        read = [reader for reader in self.readers if self._is_read(reader) and reader.config.out_of_scope is not None]
        return [reader.config.name for reader in read if reader.is_out_of_scope(value_at(fields, reader.column))]

    def text_key(self, text: str) -> int:
        """Equal for texts that the model reads alike, apart from case and white space."""
        return _key(self._folded(text))

    def _folded(self, text: str) -> str:
        return _fold(text if self._normalizer is None else self._normalizer.normalize_str(text))

    def _text(self, row: Row, fields: Fields, place: str) -> str:
        if self.template is None:
            text = text_of(row, self.config.text_column)
            if isinstance(text, BadText):
                raise BadRowError(f"{place}: {text.reason}")
            self.texts.add(text, place)
            return text
        try:
            rendered = self.template.render({name: value_at(fields, name) for name in self.template.fields})
        except FieldError as error:
            raise BadRowError(f"{place}: {error}") from error
        if _storable(rendered) != rendered:
            raise BadRowError(f"{place}: the text of text_template is not valid Unicode")
        return rendered

    def _holds(self, fields: Fields, column: str, values: Sequence[str]) -> bool:
        """Whether the cell is one of the values or, if it is a list, holds one."""
        cell = value_at(fields, column)
        if column in self._splitters:
            cell = self._splitters[column].parts_as_spelled(cell)
        return any(as_text(part) in values for part in (cell if isinstance(cell, list) else [cell]))


def _template(config: DataConfig) -> Template | None:
    try:
        return None if config.text_template is None else Template(config.text_template)
    except TemplateError as error:
        raise ConfigError(f"data.text_template {config.text_template!r}: {error}") from error


def _storable(text: str | None) -> str | None:
    """The text without the lone surrogates that JSON can spell."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _fold(text: str) -> str:
    """Equal for texts that differ only in case and white space."""
    return " ".join(text.split()).casefold()


def _key(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def _fraction(text: str) -> float:
    """A hash as a fraction in [0, 1)."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53  # as many bits as a float holds
