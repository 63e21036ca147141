"""Where files lie: a path of this machine, a URI such as ``s3://bucket/file.csv``, or ``-`` for standard input."""

from __future__ import annotations

import glob
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


def split_name(name: str) -> tuple[str | None, str | None]:
    """The format and the compression that a file's name says."""
    path = PurePath(name.lower())
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
        where = "" if is_uri(name) or Path(name).is_absolute() else f"; paths are relative to {Path.cwd()}"
        raise TableError(f"{name}: no such file{where}")
    if is_folder:
        raise TableError(f"{name}: is a folder; name its files, such as {name.rstrip('/')}/*.csv")
    return size


def is_pipe(name: str) -> bool:
    """Whether a path is a named pipe, or what a shell puts in place of ``<(command)``."""
    return not is_uri(name) and Path(name).is_fifo()


def why(error: Exception) -> str:
    """What the operating system said, without the name that stands in the message already."""
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)


def find_files(patterns: str | Sequence[str]) -> list[str]:
    """The files that paths, globs, folders and URIs stand for, in order, each once.

    A folder stands for all tables in it and below, except those whose name, or a folder's on the way, begins with
    ``.`` or ``_``. Globs are for paths, not for URIs. ``-`` is standard input.

    Raises:
        TableError: a pattern stands for no file.
    """
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            files = _expand(pattern)
        except (OSError, ValueError) as error:
            raise TableError(f"{pattern}: {why(error)}") from error
        if not files:
            raise TableError(f"{pattern}: the folder has no table; names must end in {known_names()}")
        found |= dict.fromkeys(files)
    return list(found)


def _expand(pattern: str) -> list[str]:
    if pattern == STDIN:
        return [pattern]
    if is_uri(pattern):
        return _uri_files(pattern)
    if Path(pattern).is_dir():
        return _folder_files(pattern)
    if Path(pattern).exists():
        return [pattern]
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        where = "" if Path(pattern).is_absolute() else f"; paths are relative to {Path.cwd()}"
        raise TableError(f"{pattern}: no such file{where}")
    files = [path for path in matches if not Path(path).is_dir()]
    return files or [file for path in matches for file in _folder_files(path)]


def _folder_files(folder: str) -> list[str]:
    inner = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
    return [f"{folder.rstrip('/')}/{path}" for path in inner if _is_table(path)]


def _uri_files(name: str) -> list[str]:
    from pyarrow import fs

    files, path = file_system(name)
    try:
        info = files.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise TableError(f"{name}: no such file")
        if info.type == fs.FileType.File:
            return [name]
        below = files.get_file_info(fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise TableError(f"{name}: cannot be read ({one_line(error)})") from error
    root = path.rstrip("/")
    inner = sorted(info.path.removeprefix(root).lstrip("/") for info in below if info.type == fs.FileType.File)
    return [f"{name.rstrip('/')}/{path}" for path in inner if _is_table(path)]


def _is_table(path: str) -> bool:
    return split_name(path)[0] is not None and not any(part[0] in "._" for part in path.split("/"))
