"""``polyhead-export``: puts a checkpoint into a Triton model repository, complete or not at all.

It belongs to this library, not to training, so that a serving machine needs no transformers
(docs/decisions/0002-export.md). The predictor is imported inside functions, so that ``--help`` and typing errors do not
wait for torch.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyhead.errors import PolyheadError, RepositoryError
from polyhead.files import swap_folder
from polyhead.interrupt import INTERRUPTED, interruptible
from polyhead.repository import remove_version

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
            target = export_checkpoint(checkpoint, repository, name, version, replace, precision)
    except KeyboardInterrupt:
        print("polyhead-export: interrupted; run it again", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except PolyheadError as error:
        print(f"polyhead-export: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(f"exported {checkpoint} to {target}")


def export_checkpoint(
    checkpoint: Path | str,
    repository: Path | str,
    name: str = "gpt2_classifier",
    version: int = 1,
    replace: bool = False,
    precision: str | None = None,
) -> Path:
    """Copies a checkpoint to ``repository/name/version/checkpoint`` and writes ``repository/name/labels.txt``.

    If the model folder does not exist, it is made from the repository's template. The copy is made inside the model
    folder and renamed into place.

    Args:
        precision: checked in addition to fp32; see `Predictor.load`.

    Returns:
        The folder of the version.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ToleranceError: the engine's scores leave the tolerance.
        RepositoryError: that version holds a checkpoint and `replace` is off, or the repository cannot be written.
    """
    checkpoint, repository = Path(checkpoint), Path(repository)
    check_name(name)
    if version < 1:
        raise RepositoryError(f"version {version}: must be 1 or more")
    model = repository / name
    target = model / str(version)
    if (target / "checkpoint").exists() and not replace:
        raise RepositoryError(f"{target}: already holds a checkpoint; take another --version, or --replace it")
    predictor = prove(checkpoint, precision)
    install_version(checkpoint, predictor.schema.column_names(), model, version)
    return target


def check_name(name: str) -> None:
    """Raises RepositoryError if this is no valid model name."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise RepositoryError(f"name {name!r}: a model name has letters, digits, '_', '-' and '.', and no '.' in front")


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


def install_version(checkpoint: Path, columns: list[str], model: Path, version: int) -> None:
    """Copies everything next to its final place, then renames: first the version, then the files of all versions.

    Raises:
        RepositoryError: something cannot be written; nothing has changed.
    """
    template, target = _template(), model / str(version)
    is_new = not model.exists()
    try:
        model.mkdir(parents=True, exist_ok=True)
        # In the model folder, so that no rename crosses file systems; Triton reads only numbered folders.
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=model) as folder:
            staging = Path(folder)
            staged = staging / "version"
            staged.mkdir()
            shutil.copytree(checkpoint, staged / "checkpoint")
            shutil.copyfile((target if target.is_dir() else template / "1") / "model.py", staged / "model.py")
            (staging / "labels.txt").write_text("".join(f"{column}\n" for column in columns), encoding="utf-8")
            shared = ["labels.txt"]
            if not (model / "config.pbtxt").exists():
                shutil.copyfile(template / "config.pbtxt", staging / "config.pbtxt")
                shared.append("config.pbtxt")
            swap_folder(staged, target, staging / "old")
            for name in shared:  # written above, so that a full disk is noticed before the version is replaced
                os.replace(staging / name, model / name)
    except OSError as error:
        if is_new:
            shutil.rmtree(model, ignore_errors=True)
        raise RepositoryError(f"{model}: cannot be written ({error}); nothing was exported") from error


def retire_version(model: Path, version: int) -> bool:
    """Removes an old version; returns False if it was already gone.

    The version that serves as template for new repositories loses only its checkpoint.
    """
    folder = model / str(version)
    if folder.resolve() != _template() / "1":
        remove_version(model, version)
        return True
    if existed := (folder / "checkpoint").exists():
        shutil.rmtree(folder / "checkpoint")
    return existed


def _template() -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parents[1] / "model_repository" / "gpt2_classifier"
    return checkout if checkout.is_dir() else package / "model_template"


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="polyhead-export")


if __name__ == "__main__":
    main()
