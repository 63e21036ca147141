"""A path on this machine or a shared file system, or a URI such as ``s3://bucket/folder``."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from polyhead.files import write_file
from polyhead_rows.place import file_system, is_uri


@dataclass(frozen=True)
class Place:
    """A file or folder, and the file system on which it is."""

    files: FileSystem
    path: str

    @classmethod
    def of(cls, name: str) -> Place:
        """The place that a path or URI names.

        Raises:
            TableError: no file system knows the URI.
        """
        return cls(*file_system(name)) if is_uri(name) else cls(LocalFileSystem(), absolute(name))

    def __truediv__(self, name: str) -> Place:
        return Place(self.files, f"{self.path}/{name}")

    def beside(self, suffix: str) -> Place:
        """The place in the same folder whose name has `suffix` at its end."""
        return Place(self.files, self.path.rstrip("/") + suffix)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's file systems, which have locks and renames."""
        return isinstance(self.files, LocalFileSystem)

    def is_within(self, other: Place) -> bool:
        """Whether it is the other place or below it, also by a link."""
        if self.is_local and other.is_local:
            return Path(self.path).resolve().is_relative_to(Path(other.path).resolve())
        return self.files == other.files and f"{self.path}/".startswith(f"{other.path}/")

    def info(self) -> FileInfo:
        """Kind, size and time of the last change."""
        return self.files.get_file_info(self.path)

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        return bool(self.info().type != FileType.NotFound)

    def names(self) -> list[str]:
        """The names in the folder, sorted; an empty list if there is no folder."""
        return sorted(self.sizes())

    def sizes(self) -> dict[str, int | None]:
        """The sizes of what is in the folder, by name; None for a folder. Empty if there is no folder."""
        found = self.files.get_file_info(FileSelector(self.path, allow_not_found=True))
        return {info.base_name: info.size for info in found}

    def read(self) -> bytes:
        """The whole file."""
        with self.files.open_input_file(self.path) as file:
            content: bytes = file.read()
        return content

    def write(self, content: bytes) -> None:
        """Writes the file in one step: it holds its old content or `content`, never a part."""
        folder, _, name = self.path.rpartition("/")
        self.files.create_dir(folder, recursive=True)
        if self.is_local:
            write_file(Path(self.path), content)
            return
        part = Place(self.files, f"{folder}/.{name}.{uuid.uuid4().hex}.tmp")
        try:
            with self.files.open_output_stream(part.path) as file:
                file.write(content)
            self.files.move(part.path, self.path)
        finally:
            part.remove()

    def remove(self) -> None:
        """Removes the file, or the folder with everything in it; nothing happens if it does not exist."""
        match self.info().type:
            case FileType.Directory:
                self.files.delete_dir(self.path)
            case FileType.File:
                self.files.delete_file(self.path)


def absolute(name: str) -> str:
    """A path from the root, because other nodes have other working folders; a URI as it is."""
    return name if is_uri(name) else str(Path(name).absolute())
