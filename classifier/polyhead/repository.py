"""A Triton model repository on disk: its models, their versions, and which of them are whole.

Triton takes the highest version number it finds. One without model.py hangs its load and its shutdown for good.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyhead.errors import RepositoryError

FILES = ("model.py", "checkpoint/config.json")  # what else is missing, the load says by itself


def versions_of(model: Path) -> list[int]:
    """The version numbers that Triton sees in a model's folder, lowest first."""
    return sorted(int(path.name) for path in model.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())


def missing_file(model: Path, version: int) -> str | None:
    """The first file that a version lacks, or None if it is whole."""
    return next((name for name in FILES if not (model / str(version) / name).is_file()), None)


def models_with_checkpoint(repository: Path) -> list[str]:
    """The models to serve.

    Raises:
        RepositoryError: the repository is missing, holds no checkpoint, or what Triton would load of it is not whole.
    """
    if not repository.is_dir():
        raise RepositoryError(f"--repository {repository}: no such folder")
    models = sorted({path.parents[2].name for path in repository.glob("*/[0-9]*/checkpoint/config.json")})
    if not models:
        raise RepositoryError(f"--repository {repository}: holds no checkpoint; polyhead-export puts one in")
    # Triton would try to load it, and fail as a whole.
    empty = sorted({path.parent.name for path in repository.glob("*/config.pbtxt")} - set(models))
    if empty:
        raise RepositoryError(
            f"--repository {repository}: {empty[0]} holds no checkpoint, which keeps {models[0]} from being served; "
            "export one to it, or keep your models in a repository of their own (polyhead-export --repository DIR)"
        )
    for name in models:
        latest = versions_of(repository / name)[-1]
        if lacking := missing_file(repository / name, latest):
            raise RepositoryError(
                f"{repository / name / str(latest)}: {lacking} is missing, and Triton would hang on this version, the "
                "highest; let its copy end, or remove it (polyhead-deploy and polyhead-export put versions in whole)"
            )
    return models


def remove_version(model: Path, version: int) -> None:
    """Takes a version out of Triton's sight in one step, then removes it; does nothing if it is not there."""
    folder = model / str(version)
    if not folder.exists():
        return
    with tempfile.TemporaryDirectory(prefix=".removed-", dir=model) as grave:
        os.rename(folder, Path(grave) / "version")


@contextmanager
def locked(model: Path) -> Iterator[None]:
    """Keeps other deployments of the model out, and removes what one that was killed has left half done.

    Raises:
        RepositoryError: another one is under way.
    """
    with (model / ".deploy.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RepositoryError(f"{model}: another deployment of this model is under way") from error
        for pattern in (".staging-*", ".removed-*"):
            for folder in model.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)
        yield
