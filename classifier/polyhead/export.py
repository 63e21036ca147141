"""``polyhead-export``: puts a checkpoint into a Triton model repository, complete or not at all.

It belongs to this library, not to training, so that a serving machine needs no transformers
(docs/decisions/0002-export.md). The predictor is imported inside functions, so that ``--help`` and typing errors do not
wait for torch.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyhead.checkpoint_files import copy_checkpoint, other_names
from polyhead.config_pbtxt import GPU_VALUES, ConfigPbtxt, for_gpu
from polyhead.errors import CheckpointError, PolyheadError, RepositoryError
from polyhead.files import sync, sync_tree
from polyhead.interface import Interface, check_changes, listed
from polyhead.interrupt import INTERRUPTED, interruptible
from polyhead.repository import (
    CONFIG,
    HIGHEST_VERSION,
    UNCOMMITTED,
    commit,
    install,
    labels_of,
    locked,
    missing_file,
    pin_served,
    read_config,
    served_versions,
    write_staged,
)
from polyhead.terminal import say

if TYPE_CHECKING:
    from polyhead.predictor import Predictor

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "POLYHEAD_EXPORT"},
)


@app.command(epilog="Example: polyhead-export runs/debian --repository model_repository && polyhead-serve")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder made by polyhead-train.")],
    repository: Annotated[Path, typer.Option(help="Model repository.")] = Path("model_repository"),
    name: Annotated[str, typer.Option(help="Model name.")] = "gpt2_classifier",
    version: Annotated[int, typer.Option(help="Version, the name of its folder.")] = 1,
    replace: Annotated[
        bool,
        # Destructive, so no environment variable may set it.
        typer.Option("--replace", help="Replace the checkpoint that this version holds.", allow_from_autoenv=False),
    ] = False,
    allow_schema_change: Annotated[
        bool,
        # Can break callers, so no environment variable may set it.
        typer.Option(
            "--allow-schema-change",
            help="Export although callers of the served version can break: fewer or other heads, labels or fields.",
            allow_from_autoenv=False,
        ),
    ] = False,
    gpu: Annotated[
        bool,
        typer.Option(
            "--gpu",
            help="Make a new model's config.pbtxt for a GPU: 256 texts per batch, two instances, and no waiting for "
            "answers, so that the next texts are tokenized while the GPU computes.",
        ),
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Also check the answers at this precision: fp32, bf16, int8, or auto for the one that this machine "
            "would serve with. Default: POLYHEAD_PRECISION, else auto.",
        ),
    ] = None,
) -> None:
    """Put a checkpoint into a Triton model repository, after checking its answers with golden.jsonl."""
    try:
        with interruptible():  # else SIGTERM would leave the copy behind
            target = export_checkpoint(
                checkpoint, repository, name, version, replace, precision, allow_schema_change, gpu
            )
            served = served_versions(target.parent)
    except KeyboardInterrupt:
        say("polyhead-export: interrupted; run it again", "stderr")
        raise typer.Exit(INTERRUPTED) from None
    except PolyheadError as error:
        say(f"polyhead-export: {error}", "stderr")
        raise typer.Exit(2) from None
    say(f"exported {checkpoint} to {target}")
    if version not in served:
        say(f"{name}: Triton serves version {', '.join(map(str, served))}, as {target.parent / CONFIG} says")


def export_checkpoint(
    checkpoint: Path | str,
    repository: Path | str,
    name: str = "gpt2_classifier",
    version: int = 1,
    replace: bool = False,
    precision: str | None = None,
    allow_schema_change: bool = False,
    gpu: bool = False,
) -> Path:
    """Copies a checkpoint to ``repository/name/version/checkpoint``, and makes the version the served one.

    A version below the served one is only copied. If the model folder does not exist, it is made from the repository's
    template. Until one last step, everything is in a staging folder or in a version folder that no start serves.

    Args:
        precision: checked in addition to fp32; see `Predictor.load`.
        allow_schema_change: whether the version may break callers of the served one; see `polyhead.interface`.
        gpu: whether a new config.pbtxt is made for a GPU; an existing one stays as its author wrote it.

    Returns:
        The folder of the version.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ToleranceError: the engine's scores leave the tolerance.
        RepositoryError: that version holds a checkpoint and `replace` is off, callers could break, the repository
            cannot be written, or `gpu` is on and the model has a config.pbtxt.
    """
    checkpoint, repository = Path(checkpoint), Path(repository)
    check_name(name)
    if not 1 <= version <= HIGHEST_VERSION:
        raise RepositoryError(f"version {version}: must be from 1 to {HIGHEST_VERSION}")
    check_source(checkpoint, repository)
    model = repository / name
    target = model / str(version)
    with locked(repository, name) as staging:
        if gpu and (model / CONFIG).exists():
            values = ", ".join(value.strip() for value in GPU_VALUES.values())
            raise RepositoryError(
                f"{model / CONFIG}: exists and stays as it is, so --gpu would do nothing; leave it out, or export to "
                f"another --repository or --name, or write these values there: {values}"
            )
        is_replaced = (target / "checkpoint").exists()
        if is_replaced and not replace:
            raise RepositoryError(f"{target}: already holds a checkpoint; take another --version, or --replace it")
        read_config(model).pinned_to(version)  # else it would be refused only at the end
        served = [number for number in served_versions(model) if missing_file(model, number) is None]
        is_served = version >= max(served, default=0)
        try:
            staged = stage_version(checkpoint, model, version, staging)
            if old := served if is_served else [version] if is_replaced else []:
                _tell_changes(model / str(old[-1]), staged, allow_schema_change)
            prove_copy(checkpoint, staged, precision)
            _put(staged, model, version, staging, is_served, gpu)
        except OSError as error:
            raise RepositoryError(f"{model}: cannot be written ({error}); nothing was exported") from error
    return target


def check_name(name: str) -> None:
    """Raises RepositoryError if this is no valid model name."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise RepositoryError(f"name {name!r}: a model name has letters, digits, '_', '-' and '.', and no '.' in front")


def check_source(checkpoint: Path, repository: Path) -> None:
    """Raises CheckpointError if this is no checkpoint, before anything is copied."""
    Interface.of_checkpoint(checkpoint)
    if repository.resolve().is_relative_to(checkpoint.resolve()):
        raise CheckpointError(f"{checkpoint}: the repository {repository} is inside of it")


def stage_version(checkpoint: Path, model: Path, version: int, staging: Path) -> Path:
    """Makes the folder of a version in the staging folder: model.py, labels.txt, and a copy of the checkpoint.

    Raises:
        CheckpointError: the checkpoint holds a link.
        OSError: something cannot be read or written.
    """
    staged = staging / "version"
    staged.mkdir()
    copy = staged / "checkpoint"
    copy_checkpoint(checkpoint, copy)
    if others := other_names(checkpoint):
        say(f"{checkpoint}: not exported, because a checkpoint has no such files: {listed(others, quote=False)}")
    code = model / str(version) / "model.py"
    shutil.copyfile(code if code.is_file() else _template() / "1" / "model.py", staged / "model.py")
    (staged / "model.py").chmod(0o644)
    write_staged(staged / "labels.txt", labels_of(copy))
    staged.chmod(0o755)
    return staged


def prove_copy(checkpoint: Path, staged: Path, precision: str | None) -> Predictor:
    """Proves the staged copy, because the original may change meanwhile; errors name the original."""
    copy = staged / "checkpoint"
    try:
        return prove(copy, precision)
    except PolyheadError as error:
        if str(copy) not in str(error):
            raise
        raise type(error)(str(error).replace(str(copy), str(checkpoint))) from error


def prove(checkpoint: Path, precision: str | None) -> Predictor:
    """Loads the checkpoint at that precision; all golden rows must pass the gate there and in fp32.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ToleranceError: the engine's scores leave the tolerance.
    """
    from polyhead.predictor import Predictor

    predictor = Predictor.load(checkpoint, precision=precision)
    predictor.check_golden()
    if predictor.precision != "fp32":
        Predictor.load(checkpoint, precision="fp32").check_golden()
    return predictor


def install_version(staged: Path, model: Path, version: int, staging: Path) -> None:
    """Puts a staged version into an existing model's folder, where no start serves it until it is committed.

    Raises:
        RepositoryError, OSError: nothing has changed.
    """
    pin_served(model, staging)
    if version not in served_versions(model):
        write_staged(staged / UNCOMMITTED, "")
    install(staged, model, version)


def is_template(model: Path, version: int) -> bool:
    """Whether new repositories get their model.py from this version, as in a checkout."""
    return (model / str(version)).resolve() == (_template() / "1").resolve()


def _put(staged: Path, model: Path, version: int, staging: Path, is_served: bool, gpu: bool) -> None:
    if not (model / CONFIG).exists():
        text = (_template() / CONFIG).read_text("utf-8")
        write_staged(staging / CONFIG, ConfigPbtxt(for_gpu(text) if gpu else text).pinned_to(version))
    if not model.exists():
        # The staging folder itself becomes the model's. If it stayed there, Triton could take it for a model.
        os.rename(staged, staging / str(version))
        staging.chmod(0o755)
        sync_tree(staging)
        os.rename(staging, model)
        sync(model.parent)
        return
    if (staging / CONFIG).exists():  # a model's folder without config.pbtxt: no start can serve it yet
        install(staged, model, version)
        os.rename(staging / CONFIG, model / CONFIG)
        sync(model)
        return
    if is_served:
        install_version(staged, model, version, staging)
        commit(model, version, staging)
    else:
        pin_served(model, staging)
        install(staged, model, version)


def _tell_changes(old: Path, staged: Path, is_allowed: bool) -> None:
    try:
        before = Interface.of_checkpoint(old / "checkpoint")
    except CheckpointError as error:
        say(f"{error}; what changes for callers is not known")
        return
    check_changes(before, Interface.of_checkpoint(staged / "checkpoint"), str(old), is_allowed)


def _template() -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parents[1] / "model_repository" / "gpt2_classifier"
    return checkout if checkout.is_dir() else package / "model_template"


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="polyhead-export")


if __name__ == "__main__":
    main()
