"""The files of a checkpoint folder: which ones belong to it, how they are copied, and how they are read within bounds.

A checkpoint may come from anyone. A link in it could lead to a file of the machine that reads it, a pipe would block
for ever, and a huge file would fill the memory. So copies have regular files only, and reading has limits.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyhead.errors import CheckpointError
from polyhead.other_folders import what_it_is

NGRAMS = "ngrams.safetensors"
DISTRIBUTION = "distribution.json"
FILES = ("config.json", "model.safetensors", NGRAMS, "tokenizer.json", "golden.jsonl", "metrics.json", DISTRIBUTION)
OPTIONAL = frozenset({NGRAMS, "metrics.json", DISTRIBUTION})
REPORT = "report"  # a folder of files

# Far above what real models need: a tokenizer of 256,000 tokens has 20 MB.
MOST_BYTES = {"config.json": 32 << 20, "tokenizer.json": 64 << 20, "golden.jsonl": 256 << 20}
MOST_BYTES_OF_OTHERS = 64 << 20
MOST_DEPTH = 32  # of lists and objects in each other
MOST_REPORT_FILES = 1000

READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # not blocking: opening a pipe would wait for its writer


def checkpoint_files(path: Path | str) -> list[Path]:
    """All files of the checkpoint in `path`, also those of ``report/``. Other files in the folder do not belong to it.

    Raises:
        CheckpointError: a file is missing, or a name belongs to a link, a pipe, a device or another special file.
    """
    folder = Path(path)
    return [folder / name for name in _names(folder)]


def other_names(path: Path | str) -> list[str]:
    """What else is in the folder. Nothing of it is copied."""
    folder = Path(path)
    known = {Path(name).parts[0] for name in _names(folder)} | {REPORT}
    found = {entry.name for entry in os.scandir(folder)} - known
    return sorted(found | {f"{REPORT}/{entry.name}/" for entry in _scan(folder / REPORT) if _is_folder(entry)})


def copy_checkpoint(source: Path | str, target: Path | str) -> None:
    """Copies the files of a checkpoint into a new folder, readable for all and writable for the owner only.

    A file that becomes a link between the look at it and its copy is refused too.

    Raises:
        CheckpointError: as for `checkpoint_files`.
        OSError: a file cannot be read or written.
    """
    source, target = Path(source), Path(target)
    names = _names(source)
    for folder in (target, target / REPORT):
        folder.mkdir()
        folder.chmod(0o755)  # whatever the umask is: the server may run as another user
    top = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    report = -1
    try:
        if any("/" in name for name in names):
            report = os.open(REPORT, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        for name in names:
            parent, _, file_name = name.rpartition("/")
            try:
                opened = os.open(file_name, READ | os.O_NOFOLLOW, dir_fd=report if parent else top)
            except OSError as error:
                raise CheckpointError(f"{source / name}: cannot be copied ({error.strerror})") from error
            with os.fdopen(opened, "rb") as original, (target / name).open("xb") as copy:
                if not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise CheckpointError(f"{source / name}: {_not_regular(os.fstat(opened).st_mode)}")
                shutil.copyfileobj(original, copy, 1 << 20)
                os.fchmod(copy.fileno(), 0o644)
                copy.flush()
                os.fsync(copy.fileno())
    finally:
        for descriptor in (top, report):
            if descriptor >= 0:
                os.close(descriptor)


def check_is_file(path: Path) -> None:
    """Checks it before a library opens the file, because opening a pipe would wait for its writer.

    Raises:
        CheckpointError: the file is missing, or it is a folder, a pipe or a device.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is not a file' if path.exists() else 'is missing'}")


def read_text(path: Path) -> str:
    """The text of a file of the checkpoint.

    Raises:
        CheckpointError: it is missing, too large, no regular file, or not UTF-8.
    """
    most = MOST_BYTES.get(path.name, MOST_BYTES_OF_OTHERS)
    try:
        with os.fdopen(os.open(path, READ), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{path}: {_not_regular(found.st_mode)}")
            content = file.read(most + 1) if found.st_size <= most else b""
            if found.st_size > most or len(content) > most:
                raise CheckpointError(f"{path}: is larger than {most >> 20} MiB, the most that is read")
            return content.decode("utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def read_config(folder: Path) -> Any:
    """The content of a checkpoint's config.json.

    Raises:
        CheckpointError: the folder is no checkpoint, and what it is instead; or as `read_json`.
    """
    path = folder / "config.json"
    try:
        config = read_json(path) if path.is_file() else None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if config is None or (isinstance(config, dict) and "polyhead" not in config):
        if (found := what_it_is(folder)) is not None:
            place = f"{folder}:" if config is None else f"{path}: has no polyhead section; the folder"
            raise CheckpointError(f"{place} {found}")
        _check_folder(folder)
        if config is None:
            return read_json(path)  # says what is wrong with the file
    return config


def read_json(path: Path) -> Any:
    """The content of a JSON file of the checkpoint; raises CheckpointError as `read_text` and `parse_json` do."""
    return parse_json(path, read_text(path))


def parse_json(path: Path | str, text: str) -> Any:
    """The content of JSON in which numbers are finite and an object has each name once.

    Raises:
        CheckpointError: it is not such JSON; the message names `path`.
    """
    try:
        content = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole, object_pairs_hook=_unique
        )
        _check_depth(content)
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
        raise CheckpointError(f"{path}: is not JSON ({error})") from error
    return content


def _names(folder: Path) -> list[str]:
    """The relative names of the checkpoint's files."""
    _check_folder(folder)
    names = []
    for name in FILES:
        try:
            mode = (folder / name).lstat().st_mode
        except FileNotFoundError:
            if name in OPTIONAL:
                continue
            raise CheckpointError(f"{folder / name}: is missing") from None
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{folder / name}: {_not_regular(mode)}")
        names.append(name)
    for entry in _scan(folder / REPORT):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            continue  # see `other_names`
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{folder / REPORT / entry.name}: {_not_regular(mode)}")
        names.append(f"{REPORT}/{entry.name}")
    if len(names) > MOST_REPORT_FILES:
        raise CheckpointError(f"{folder / REPORT}: holds more than {MOST_REPORT_FILES} files")
    return names


def _check_folder(folder: Path) -> None:
    try:
        if not folder.is_dir():
            missing = "" if folder.exists() else "; it does not exist"
            raise CheckpointError(f"{folder}: is not a checkpoint folder{missing}")
    except OSError as error:  # its parent cannot be searched
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error


def _scan(report: Path) -> Iterator[os.DirEntry[str]]:
    """What is in ``report/``, sorted by name; nothing if it is missing."""
    try:
        mode = report.lstat().st_mode
    except FileNotFoundError:
        return iter(())
    if not stat.S_ISDIR(mode):
        raise CheckpointError(f"{report}: {'is not a folder' if stat.S_ISREG(mode) else _not_regular(mode)}")
    return iter(sorted(os.scandir(report), key=lambda entry: entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _not_regular(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "is a link, which could lead to any file; put the file itself there (cp -rL copies a folder so)",
        stat.S_IFDIR: "is a folder, not a file",
        stat.S_IFIFO: "is a pipe, not a file",
        stat.S_IFSOCK: "is a socket, not a file",
    }
    return kinds.get(stat.S_IFMT(mode), "is a device, not a file")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"the number {text[:20]}… is too large")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {twice[:60]!r} occurs twice in one object")
    return found


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
