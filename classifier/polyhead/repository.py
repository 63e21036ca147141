"""A Triton model repository on disk: its models, their versions, and which version Triton serves.

``config.pbtxt`` names the served version and its labels. A version folder that it does not name is not loaded by any
start, so one step makes a version the served one: the replacement of that file (docs/decisions/0021-versions.md).

Triton takes every folder in the repository for a model, also a hidden one, and does not start if one is none. So new
files are staged inside a model's folder, where Triton reads only numbered folders.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from polyhead.config_pbtxt import ConfigPbtxt
from polyhead.errors import PolyheadError, RepositoryError
from polyhead.files import ExchangeError, LockedError, exchange, file_lock, sync, sync_tree
from polyhead.interface import Interface
from polyhead.terminal import say

HIGHEST_VERSION = 2**63 - 1  # Triton reads version numbers as int64
FILES = ("model.py", "checkpoint/config.json")  # if another file is missing, the load reports it
CONFIG = "config.pbtxt"
# In a version's folder: an export or a deployment has put it there, and has not yet made it the served one.
UNCOMMITTED = ".uncommitted"
STAGING = ".staging+"  # no model name has a '+'


def versions_of(model: Path) -> list[int]:
    """The version numbers that Triton sees in a model's folder, ascending."""
    return sorted(int(path.name) for path in model.glob("[0-9]*") if _is_version(path.name) and path.is_dir())


def missing_file(model: Path, version: int) -> str | None:
    """The first file that is missing from a version, or None if it is complete."""
    return next((name for name in FILES if not (model / str(version) / name).is_file()), None)


def served_versions(model: Path) -> list[int]:
    """The versions that a start of Triton would serve.

    Raises:
        RepositoryError: config.pbtxt cannot be understood.
    """
    return read_config(model).served(versions_of(model))


def read_config(model: Path) -> ConfigPbtxt:
    """Reads config.pbtxt; a missing one is empty.

    Raises:
        RepositoryError: it cannot be read or understood.
    """
    path = model / CONFIG
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeError) as error:
        raise RepositoryError(f"{path}: cannot be read ({error})") from error
    return ConfigPbtxt(text, str(path))


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
    empty = sorted({path.parent.name for path in repository.glob(f"*/{CONFIG}")} - set(models))
    if empty:
        raise RepositoryError(
            f"--repository {repository}: {empty[0]} holds no checkpoint, so Triton would not serve {models[0]} "
            "either; export a checkpoint to it, or use another repository (polyhead-export --repository DIR)"
        )
    for name in models:
        for version in served_versions(repository / name):
            if lacking := missing_file(repository / name, version):
                raise RepositoryError(
                    f"{repository / name / str(version)}: {lacking} is missing, and Triton would hang because this is "
                    f"the version that {CONFIG} serves; finish copying it, or export a checkpoint to this version "
                    "(polyhead-deploy and polyhead-export add only complete versions)"
                )
    return models


@contextmanager
def locked(repository: Path, name: str, tell: Callable[[str], None] = say) -> Iterator[Path]:
    """Locks a model against other exports and deployments, and takes back what a killed one left.

    Args:
        tell: gets a line for every version that is taken back.

    Yields:
        An empty folder for new files, on the same file system; it is removed at the end.

    Raises:
        RepositoryError: another export or deployment holds the lock, or the repository cannot be written.
    """
    model = repository / name
    with ExitStack() as stack:
        try:
            if not repository.exists():
                repository.mkdir(parents=True)
                stack.callback(_remove_if_empty, repository, name)
            # It stays: Triton may fail to start if a file vanishes while it lists the repository.
            stack.enter_context(file_lock(_lock(repository, name)))
            staging = _staging_place(repository, name) / f"{STAGING}{name}"
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            _sweep(repository, name, staging, tell)
            staging.mkdir()
        except LockedError as error:
            raise RepositoryError(f"{model}: another export or deployment of this model is under way") from error
        except OSError as error:
            raise RepositoryError(
                f"{model}: cannot be locked and written ({error}); nothing was changed. The file system must be "
                "writable and have locks"
            ) from error
        yield staging


def take_back_interrupted(repository: Path, tell: Callable[[str], None]) -> None:
    """Takes back what killed exports and deployments left; skips models that are locked, or that cannot be written."""
    staged = [path.name.removeprefix(STAGING) for path in _staging_folders(repository, "*")]
    marked = [path.parents[1].name for path in repository.glob(f"*/[0-9]*/{UNCOMMITTED}")]
    for name in sorted({*staged, *marked}):
        with contextlib.suppress(RepositoryError), locked(repository, name, tell):
            pass


def install(staged: Path, model: Path, version: int) -> None:
    """Moves a staged version folder to its place. Afterwards nothing is served that was not served before, unless this
    version already was: then it is replaced in one step, with its labels.

    Raises:
        RepositoryError: the file system cannot replace a folder in one step.
        OSError: something cannot be written; nothing has changed.
    """
    target = model / str(version)
    sync_tree(staged)
    if (target / "checkpoint").exists():
        try:
            exchange(staged, target)
        except ExchangeError as error:
            raise RepositoryError(
                f"{target}: cannot be replaced in one step on this file system ({error.strerror}); nothing was "
                "changed. Export to a new --version instead"
            ) from error
        _sync_done(model)
        return
    if target.exists():  # nothing to serve yet, as in a checkout: the checkpoint comes last and completes it
        for path in sorted(staged.iterdir(), key=lambda path: path.name == "checkpoint"):
            os.replace(path, target / path.name)
        sync(target)
    else:
        os.rename(staged, target)
    sync(model)


def commit(model: Path, version: int, staging: Path) -> None:
    """Makes a version the served one, in one step: replaces config.pbtxt.

    Raises:
        RepositoryError: config.pbtxt serves several versions, or cannot be read.
        OSError: it cannot be written.
    """
    config = read_config(model)
    text = config.pinned_to(version)
    path = model / CONFIG
    if text != config.text:
        write_staged(staging / CONFIG, text, like=path)
        os.replace(staging / CONFIG, path.resolve())  # it may be a link
        _sync_done(path.resolve().parent)
    with contextlib.suppress(OSError):  # the next command removes it
        (model / str(version) / UNCOMMITTED).unlink(missing_ok=True)


def pin_served(model: Path, staging: Path) -> None:
    """Makes a config.pbtxt of an older release, which serves the highest version, name that version.

    Else a new version folder would be served by any start before it is committed.

    Raises:
        RepositoryError: config.pbtxt serves several versions, or cannot be read.
        OSError: something cannot be written.
    """
    served, config = served_versions(model), read_config(model)
    config.pinned_to(1)
    if config.specific is not None or not served or missing_file(model, served[0]):
        return
    folder = model / str(served[0])
    try:
        write_staged(staging / "labels.txt", labels_of(folder / "checkpoint"))
    except PolyheadError:
        return  # its checkpoint is damaged, so that no start serves it
    os.replace(staging / "labels.txt", folder / "labels.txt")
    sync(folder)
    commit(model, served[0], staging)


def labels_of(checkpoint: Path) -> str:
    """The content of labels.txt: a ``head/label`` per score."""
    return "".join(f"{column}\n" for column in Interface.of_checkpoint(checkpoint).schema.column_names())


def write_staged(path: Path, text: str, like: Path | None = None) -> None:
    """Writes a file that others may read and only the owner may write, or with the mode of the file it replaces."""
    path.write_text(text, encoding="utf-8")
    if like is not None and like.exists():
        shutil.copymode(like, path)
    else:
        path.chmod(0o644)
    sync(path)


def retire(model: Path, version: int, staging: Path, keep: Sequence[str] = ()) -> bool:
    """Removes a version that is not served, or all of it but these files; returns False if there was nothing."""
    folder, removed = model / str(version), staging / f"retired-{version}"
    if not keep:
        os.rename(folder, removed)  # hides it from Triton in one step
    else:
        removed.mkdir()
        # The checkpoint first: without it, the version is no longer one.
        for path in sorted(folder.iterdir(), key=lambda path: path.name != "checkpoint"):
            if path.name not in keep:
                os.rename(path, removed / path.name)
    found = any(removed.iterdir())
    sync(model)
    shutil.rmtree(removed, ignore_errors=True)
    return found


def _sync_done(folder: Path) -> None:
    try:
        sync(folder)
    except OSError as error:
        raise RepositoryError(
            f"{folder}: cannot be synced ({error}); the new version is in place, but a power failure may undo this"
        ) from error


def _sweep(repository: Path, name: str, staging: Path, tell: Callable[[str], None]) -> None:
    model = repository / name
    leftover = [*_staging_folders(repository, name)]
    leftover += [path for pattern in (".staging-*", ".removed-*") for path in model.glob(pattern)]  # older releases'
    for folder in leftover:
        shutil.rmtree(folder, ignore_errors=True)
    for version in versions_of(model):
        marker = model / str(version) / UNCOMMITTED
        if not marker.exists():
            continue
        if version in served_versions(model):
            marker.unlink()
            continue
        staging.mkdir(exist_ok=True)
        retire(model, version, staging)
        tell(f"{name}: version {version} was removed: its export or deployment was interrupted before it was served")
    shutil.rmtree(staging, ignore_errors=True)


def _staging_place(repository: Path, name: str) -> Path:
    """Where new files are staged: in the model's folder, else in another model's, else there is no model to disturb."""
    if (repository / name).is_dir():
        return repository / name
    others = (path.parent for path in repository.glob(f"*/{CONFIG}") if not path.parent.name.startswith("."))
    return min(others, default=repository)


def _staging_folders(repository: Path, name: str) -> Iterator[Path]:
    for pattern in (f"{STAGING}{name}", f"*/{STAGING}{name}"):
        yield from repository.glob(pattern)


def _is_version(name: str) -> bool:
    return re.fullmatch(r"0|[1-9][0-9]{0,18}", name, re.ASCII) is not None and int(name) <= HIGHEST_VERSION


def _lock(repository: Path, name: str) -> Path:
    return repository / f".{name}.lock"


def _remove_if_empty(repository: Path, name: str) -> None:
    if not (repository / name).exists():
        with contextlib.suppress(OSError):
            _lock(repository, name).unlink(missing_ok=True)
            repository.rmdir()
