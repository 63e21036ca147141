"""Where files lie: a path of this machine's (or a shared) file system, or a URI as ``s3://bucket/folder``.

A file is written under a temporary name and renamed, so that a name always stands for a whole file.
"""

from __future__ import annotations

import glob
import uuid
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from polyhead_scoring.errors import InputError


@dataclass(frozen=True)
class Place:
    """A file or folder, and the file system on which it is."""

    files: FileSystem
    path: str

    @classmethod
    def of(cls, name: str) -> Place:
        """The place that a path or URI names.

        Raises:
            InputError: no file system answers to the URI.
        """
        if "://" not in name:
            return cls(LocalFileSystem(), absolute(name))
        try:
            return cls(*FileSystem.from_uri(name))
        except (ArrowException, OSError) as error:
            raise InputError(f"{name}: is no place that can be reached ({error})") from error

    def __truediv__(self, name: str) -> Place:
        return Place(self.files, f"{self.path}/{name}")

    @property
    def is_local(self) -> bool:
        """Whether it is a path of the machine's own file system, which has locks."""
        return isinstance(self.files, LocalFileSystem)

    def info(self) -> FileInfo:
        """Kind, size and time of change."""
        return self.files.get_file_info(self.path)

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        return bool(self.info().type != FileType.NotFound)

    def names(self) -> list[str]:
        """What lies in the folder, in order; nothing if there is no folder."""
        found = self.files.get_file_info(FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def read(self) -> bytes:
        """The whole file."""
        with self.files.open_input_file(self.path) as file:
            content: bytes = file.read()
        return content

    def write(self, content: bytes) -> None:
        """Writes the file whole or not at all; an older one is replaced."""
        folder, _, name = self.path.rpartition("/")
        part = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
        self.files.create_dir(folder, recursive=True)
        try:
            with self.files.open_output_stream(part) as file:
                file.write(content)
            self.files.move(part, self.path)
        except BaseException:
            if Place(self.files, part).exists():
                self.files.delete_file(part)
            raise

    def remove(self) -> None:
        """Removes the file, or the folder with all that is in it."""
        match self.info().type:
            case FileType.Directory:
                self.files.delete_dir(self.path)
            case FileType.File:
                self.files.delete_file(self.path)


def absolute(name: str) -> str:
    """A path from the root, since nodes have working folders of their own; a URI as it is."""
    return name if "://" in name else str(Path(name).absolute())


def input_files(names: list[str]) -> list[str]:
    """The files that paths, globs and folders stand for, in order, each once.

    A folder stands for all files in it and below, but those whose name, or a folder's on the way, begins with ``.`` or
    ``_``. Globs are for paths, not for URIs.

    Raises:
        InputError: a name stands for no file.
    """
    found: dict[str, None] = {}
    for name in names:
        expanded = sorted(glob.glob(name, recursive=True)) if "://" not in name and glob.has_magic(name) else [name]
        files = [file for path in expanded for file in _files_of(path)]
        if not files:
            raise InputError(f"{name}: no such file; paths are relative to {Path.cwd()}")
        found |= dict.fromkeys(files)
    return list(found)


def _files_of(name: str) -> list[str]:
    place = Place.of(name)
    try:
        info = place.info()
        if info.type == FileType.NotFound:
            return []
        if info.type == FileType.File:
            return [name]
        below = place.files.get_file_info(FileSelector(place.path, recursive=True))
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error})") from error
    root = place.path.rstrip("/")
    inner = sorted(info.path.removeprefix(root).lstrip("/") for info in below if info.type == FileType.File)
    return [f"{name.rstrip('/')}/{path}" for path in inner if not any(part[0] in "._" for part in path.split("/"))]
