"""Where files lie: a path of this machine, a URI such as ``s3://bucket/file.csv``, or ``-`` for standard input."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

from polyhead_rows.errors import TableError, one_line

STDIN = "-"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".txt": "lines",
}  # fmt: skip


PART = re.compile(rf"(.*\.json(?:{'|'.join(map(re.escape, COMPRESSIONS))})?)#([^#/]+)", re.IGNORECASE)


def split_part(name: str) -> tuple[str, str | None]:
    """The file, and the array in it that has the rows: ``splits.json#train``. A file of the whole name comes first."""
    found = PART.fullmatch(name)
    if found is None or (not is_uri(name) and Path(name).exists()):
        return name, None
    return found[1], found[2]


def split_name(name: str) -> tuple[str | None, str | None]:
    """The format and the compression that a file's name says."""
    path = PurePath(split_part(name)[0].lower())
    if path.suffix not in COMPRESSIONS:
        return FORMATS.get(path.suffix), None
    return FORMATS.get(path.with_suffix("").suffix), COMPRESSIONS[path.suffix]


def known_names() -> str:
    """All name endings, for messages."""
    return f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS)}"


def is_uri(name: str) -> bool:
    """Whether a name is a URI."""
    return "://" in name


def file_system(name: str) -> tuple[Any, str]:
    """The ``pyarrow.fs`` file system of a URI, and the path in it.

    Raises:
        TableError: no file system answers to the URI.
    """
    from pyarrow import ArrowException, fs  # paths of this machine do without it

    try:
        files, path = fs.FileSystem.from_uri(name)
    except (ArrowException, OSError, ValueError) as error:
        raise TableError(f"{name}: cannot be reached ({one_line(error)})") from error
    return files, path


def open_bytes(name: str) -> BinaryIO:
    """The file's bytes, to be read and, except of standard input, sought.

    Raises:
        TableError: it cannot be opened.
    """
    name, _ = split_part(name)
    try:
        if is_uri(name):
            files, path = file_system(name)
            return cast(BinaryIO, files.open_input_file(path))
        return Path(name).open("rb")
    except OSError as error:
        raise TableError(f"{name}: {why(error)}") from error


def size_of(name: str) -> int:
    """The file's size in bytes.

    Raises:
        TableError: there is no such file, or it is a folder.
    """
    name, _ = split_part(name)
    try:
        if is_uri(name):
            files, path = file_system(name)
            info = files.get_file_info(path)
            exists, is_folder, size = info.type.name != "NotFound", info.type.name == "Directory", info.size or 0
        else:
            exists, is_folder = Path(name).exists(), Path(name).is_dir()
            size = Path(name).stat().st_size if exists else 0
    except (OSError, ValueError) as error:
        raise TableError(f"{name}: {why(error)}") from error
    if not exists:
        raise _missing(name)
    if is_folder:
        raise TableError(f"{name}: is a folder; name its files, such as {name.rstrip('/')}/*.csv")
    return size


def is_pipe(name: str) -> bool:
    """Whether a path is a named pipe, or what a shell puts in place of ``<(command)``."""
    return not is_uri(name) and Path(split_part(name)[0]).is_fifo()


def why(error: Exception) -> str:
    """The operating system's message, without the file name, because our message already has it."""
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)


def find_files(patterns: str | Sequence[str]) -> list[str]:
    """The files for paths, globs, folders and URIs, in order. A file with two names through links is given once.

    A folder means all tables in it and in its subfolders, without files and subfolders that begin with
    ``.`` or ``_``. It means its ``.txt`` files only if it has no tables. Globs are for paths, not for URIs. ``-`` is
    standard input.

    Raises:
        TableError: a pattern stands for no file, or a folder cannot be read.
    """
    found: dict[str, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            files = _expand(pattern)
        except (OSError, ValueError) as error:
            raise TableError(f"{pattern}: {why(error)}") from error
        if not files:
            raise TableError(f"{pattern}: the folder has no table; names must end in {known_names()}")
        for name in files:
            found.setdefault(name if name == STDIN or is_uri(name) else os.path.realpath(name), name)
    return list(found.values())


def _expand(pattern: str) -> list[str]:
    if not pattern:
        raise TableError("the name of an input is empty")
    if pattern == STDIN:
        return [pattern]
    file, part = split_part(pattern)
    if part is not None:
        return [f"{name}#{part}" for name in _expand(file)]
    if is_uri(pattern):
        return _uri_files(pattern)
    matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise _missing(pattern)
    return [file for path in matches for file in (_folder_files(path) if Path(path).is_dir() else [path])]


def _missing(name: str) -> TableError:
    relative = not is_uri(name) and not Path(name).is_absolute()
    return TableError(f"{name}: no such file{f'; paths are relative to {Path.cwd()}' if relative else ''}")


def _folder_files(folder: str) -> list[str]:
    def stop(error: OSError) -> None:
        raise TableError(f"{error.filename}: {why(error)}") from error

    inner, seen = [], {str(above) for above in Path(folder).resolve().parents}
    for path, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(real)
        inner += [str((Path(path) / name).relative_to(folder)) for name in names]
    return _tables(folder, inner)


def _uri_files(name: str) -> list[str]:
    from pyarrow import fs

    files, path = file_system(name)
    try:
        info = files.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise _missing(name)
        if info.type == fs.FileType.File:
            return [name]
        below = files.get_file_info(fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise TableError(f"{name}: cannot be read ({one_line(error)})") from error
    root = path.rstrip("/")
    inner = [info.path.removeprefix(root).lstrip("/") for info in below if info.type == fs.FileType.File]
    return _tables(name, inner)


def _tables(folder: str, inner: list[str]) -> list[str]:
    """The files of a folder that are tables."""
    known = [path for path in sorted(inner) if split_name(path)[0] and not re.search("(^|/)[._]", path)]
    tables = [path for path in known if split_name(path)[0] != "lines"] or known  # a readme is no table
    return [f"{folder.rstrip('/')}/{path}" for path in tables]
