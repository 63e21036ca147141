"""A Triton model repository on disk: its models, their versions, and which versions are complete.

Triton loads the highest version number that it finds. If that version has no model.py, Triton's load and its shutdown
hang forever.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from polyhead.errors import RepositoryError
from polyhead.files import LockedError, file_lock

FILES = ("model.py", "checkpoint/config.json")  # if another file is missing, the load reports it


def versions_of(model: Path) -> list[int]:
    """The version numbers that Triton sees in a model's folder, ascending."""
    return sorted(int(path.name) for path in model.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())


def missing_file(model: Path, version: int) -> str | None:
    """The first file that is missing from a version, or None if it is complete."""
    return next((name for name in FILES if not (model / str(version) / name).is_file()), None)


def models_with_checkpoint(repository: Path) -> list[str]:
    """The models to serve.

    Raises:
        RepositoryError: the repository is missing or holds no checkpoint, or Triton would load an incomplete version.
    """
    if not repository.is_dir():
        raise RepositoryError(f"--repository {repository}: no such folder")
    models = sorted({path.parents[2].name for path in repository.glob("*/[0-9]*/checkpoint/config.json")})
    if not models:
        raise RepositoryError(f"--repository {repository}: holds no checkpoint; polyhead-export puts one in")
    # Triton would try to load these too, and serve nothing because that fails.
    empty = sorted({path.parent.name for path in repository.glob("*/config.pbtxt")} - set(models))
    if empty:
        raise RepositoryError(
            f"--repository {repository}: {empty[0]} holds no checkpoint, so Triton would not serve {models[0]} "
            "either; export a checkpoint to it, or use another repository (polyhead-export --repository DIR)"
        )
    for name in models:
        latest = versions_of(repository / name)[-1]
        if lacking := missing_file(repository / name, latest):
            raise RepositoryError(
                f"{repository / name / str(latest)}: {lacking} is missing, and Triton would hang because this is "
                "the highest version; finish copying it, or remove it (polyhead-deploy and polyhead-export add only "
                "complete versions)"
            )
    return models


def remove_version(model: Path, version: int) -> None:
    """Hides a version from Triton in one step, then removes it; does nothing if the version does not exist."""
    folder = model / str(version)
    if not folder.exists():
        return
    with tempfile.TemporaryDirectory(prefix=".removed-", dir=model) as removed:
        os.rename(folder, Path(removed) / "version")


@contextmanager
def locked(model: Path) -> Iterator[None]:
    """Locks the model against other deployments, and removes the temporary folders of a killed one.

    Raises:
        RepositoryError: another deployment holds the lock, or the model's folder cannot be locked.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(model / ".deploy.lock"))
        except LockedError as error:
            raise RepositoryError(f"{model}: another deployment of this model is under way") from error
        except OSError as error:
            raise RepositoryError(f"{model}: cannot be locked ({error})") from error
        for pattern in (".staging-*", ".removed-*"):
            for folder in model.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)
        yield
