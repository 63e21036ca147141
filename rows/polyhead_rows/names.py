"""Tables that give ids their names, from files: ``27`` is ``neutral``.

A text file has a name per line, from id 0 on. A JSON file is a list of names, or an object: id to name, name to id, or
name to a list of ids. Any other table has the id in its first column and the name in its second.
"""

from __future__ import annotations

import json
import re
from contextlib import closing
from typing import Any

from polyhead_rows.errors import TableError, one_line
from polyhead_rows.place import open_bytes, split_name
from polyhead_rows.table import ReadOptions, text_of
from polyhead_rows.table_file import open_table

LARGEST = 16 * 2**20  # bytes of a JSON file of names
_WHOLE = re.compile(r"\d+")


def read_names(path: str) -> dict[str, str]:
    """Ids and their names.

    Raises:
        TableError: the file cannot be read, or is no such table; the message names it and what is wanted.
    """
    kind, compression = split_name(path)
    if kind == "lines":
        table = open_table(path)
        with closing(table.rows()) as rows:
            names = [str(text_of(row, "text")).strip() for row in rows]
        while names and not names[-1]:
            names.pop()
        return _checked(path, {str(number): name for number, name in enumerate(names)})
    if kind == "json" and compression is None:
        with open_bytes(path) as file:
            content = file.read(LARGEST + 1)
        try:
            found = json.loads(content.decode("utf-8-sig")) if len(content) <= LARGEST else None
        except (ValueError, RecursionError) as error:
            raise TableError(f"{path}: is not JSON ({one_line(error)})") from error
        return _checked(path, _of_json(path, found))
    return _checked(path, _of_table(path))


def _of_table(path: str) -> dict[str, str]:
    table = open_table(path)
    columns = table.columns or []
    if table.format in ("csv", "tsv") and columns and _WHOLE.fullmatch(columns[0].strip()):  # no header
        table = open_table(path, ReadOptions(header=False, columns=("id", "name")))
        columns = ["id", "name"]
    names: dict[str, str] = {}
    with closing(table.rows()) as rows:
        for number, row in enumerate(rows):
            if row.fields is None:
                raise TableError(f"{table.place_of(row)}: {row.reason}")
            cells = [row.fields[name] for name in columns] if columns else list(row.fields.values())
            if len(cells) not in (1, 2):
                raise TableError(f"{path}: must have two columns, the id and the name, got {len(cells)}")
            key = number if len(cells) == 1 else cells[0]
            _add(path, names, str(key).strip(), cells[-1])
    return names


def _of_json(path: str, found: Any) -> dict[str, str]:
    names: dict[str, str] = {}
    if isinstance(found, list):
        for number, name in enumerate(found):
            _add(path, names, str(number), name)
        return names
    if not isinstance(found, dict):
        raise TableError(f"{path}: must hold a list of names or an object of ids and names, and no more than 16 MiB")
    by_name = all(isinstance(value, int) for value in found.values()) and not all(map(_WHOLE.fullmatch, found))
    for key, value in found.items():
        if isinstance(value, list):
            for one in value:
                _add(path, names, str(one), key)
        elif by_name:
            _add(path, names, str(value), key)
        else:
            _add(path, names, key, value)
    return names


def _add(path: str, names: dict[str, str], key: str, name: Any) -> None:
    if not isinstance(name, str | int | float) or isinstance(name, bool):
        raise TableError(f"{path}: the name of {key!r} must be a text, got {one_line(repr(name))}")
    if names.setdefault(key, str(name)) != str(name):
        raise TableError(f"{path}: {key!r} has two names, {names[key]!r} and {str(name)!r}")


def _checked(path: str, names: dict[str, str]) -> dict[str, str]:
    if not names:
        raise TableError(f"{path}: holds no name")
    if blank := next((key for key, name in names.items() if not name.strip()), None):
        raise TableError(f"{path}: the name of {blank!r} is blank")
    return names
