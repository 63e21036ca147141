"""A file system of a few megabytes that only one server sees, in its own mount namespace."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest


def with_tmpfs(place: Path, size: str, filled_from: Path | None = None) -> list[str]:
    """A command that replaces itself by the one that follows it, with a tmpfs of that size mounted at `place`.

    Fails the test if this system does not allow it: a fault that was not injected proves nothing.
    """
    script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && { [ -z "$3" ] || cp -a "$3/." "$2"; } && shift 3 && exec "$@"'
    arguments = [size, str(place), str(filled_from or "")]
    # Without root, a user namespace gives the right to mount, if the kernel allows user namespaces.
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    command = [*unshare, "sh", "-c", script, "sh", *arguments]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.fail(f"this fault needs a mount namespace, which is not permitted here: {tried.stderr}", pytrace=False)
    return command


def seen_by(pid: int, place: Path) -> Path:
    """The path of a folder as that process sees it."""
    return Path(f"/proc/{pid}/root") / place.relative_to("/")


def fill(folder: Path) -> Path:
    """Fills a file system; returns the file to delete to free it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**16, 2**12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return filler
