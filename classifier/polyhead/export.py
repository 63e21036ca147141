"""``polyhead-export``: puts a checkpoint into a Triton model repository, whole or not at all.

Here and not in training, since a server rolls a checkpoint out without transformers (docs/decisions/0002-export.md).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from polyhead.errors import PolyheadError, RepositoryError
from polyhead.files import swap_folder
from polyhead.gate import check_golden
from polyhead.predictor import Predictor
from polyhead.repository import remove_version

STAGING = ".staging-"


def export_checkpoint(
    checkpoint: Path | str,
    repository: Path | str,
    name: str = "gpt2_classifier",
    version: int = 1,
    replace: bool = False,
    precision: str | None = None,
) -> Path:
    """Copies a checkpoint to ``repository/name/version/checkpoint`` and writes ``repository/name/labels.txt``.

    A model folder that is not there yet is made from the repository's template. The copy is made in the
    model folder and renamed into place.

    Args:
        precision: that this machine's engine must keep the tolerance with, besides fp32; see `Predictor.load`.

    Returns:
        The folder of the version.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ToleranceError: its engine scores leave the tolerance.
        RepositoryError: that version holds a checkpoint and `replace` is off.
    """
    checkpoint, repository = Path(checkpoint), Path(repository)
    check_name(name)
    if version < 1:
        raise RepositoryError(f"version {version}: must be 1 or more")
    model = repository / name
    target = model / str(version)
    if (target / "checkpoint").exists() and not replace:
        raise RepositoryError(f"{target}: holds a checkpoint already; take another --version, or --replace it")
    predictor = prove(checkpoint, precision)
    install_version(checkpoint, predictor.schema.column_names(), model, version)
    return target


def check_name(name: str) -> None:
    """Raises RepositoryError if a model cannot be called so."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise RepositoryError(f"name {name!r}: a model name is letters, digits, '_', '-' and '.'")


def prove(checkpoint: Path, precision: str | None) -> Predictor:
    """The checkpoint at that precision, or the environment's, once all golden answers were right there and in fp32.

    Raises:
        CheckpointError: it is damaged.
        ToleranceError: its engine scores leave the tolerance.
    """
    predictor = Predictor.load(checkpoint, precision=precision)
    check_golden(predictor)
    if predictor.precision != "fp32":
        check_golden(Predictor.load(checkpoint, precision="fp32"))
    return predictor


def install_version(checkpoint: Path, columns: list[str], model: Path, version: int) -> None:
    """Copies everything beside its place, then renames: the version first, then what all versions share.

    Raises:
        RepositoryError: it could not be written; nothing has changed.
    """
    template, target = _template(), model / str(version)
    is_new = not model.exists()
    try:
        model.mkdir(parents=True, exist_ok=True)
        # In the model folder, so that a rename never crosses file systems; Triton reads numbered folders only.
        with tempfile.TemporaryDirectory(prefix=STAGING, dir=model) as folder:
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
            for name in shared:
                os.replace(staging / name, model / name)
    except OSError as error:
        if is_new:
            shutil.rmtree(model, ignore_errors=True)
        raise RepositoryError(f"{model}: cannot be written ({error}); nothing was exported") from error


def retire_version(model: Path, version: int) -> bool:
    """Removes an old version; of the one that new repositories are made from, its checkpoint alone. False: was gone."""
    folder = model / str(version)
    if folder.resolve() != _template() / "1":
        remove_version(model, version)
        return True
    if was_there := (folder / "checkpoint").exists():
        shutil.rmtree(folder / "checkpoint")
    return was_there


def _template() -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parents[1] / "model_repository" / "gpt2_classifier"
    return checkout if checkout.is_dir() else package / "model_template"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="polyhead-export",
        description="Put a checkpoint into a Triton model repository, after proving its answers on golden.jsonl.",
        epilog="example: polyhead-export runs/debian --repository model_repository && polyhead-serve",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder made by polyhead-train")
    parser.add_argument(
        "--repository",
        type=Path,
        default=os.environ.get("POLYHEAD_REPOSITORY", "model_repository"),
        help="model repository (default: %(default)s; env POLYHEAD_REPOSITORY)",
    )
    parser.add_argument("--name", default="gpt2_classifier", help="model name (default: %(default)s)")
    parser.add_argument("--version", type=int, default=1, help="version folder (default: %(default)s)")
    parser.add_argument("--replace", action="store_true", help="replace the checkpoint that this version holds")
    parser.add_argument(
        "--precision",
        help="prove the answers at this precision too: auto (what this machine would serve with), fp32, bf16 or int8 "
        "(default: auto; env POLYHEAD_PRECISION)",
    )
    arguments = parser.parse_args(argv)
    try:
        target = export_checkpoint(
            arguments.checkpoint,
            arguments.repository,
            arguments.name,
            arguments.version,
            arguments.replace,
            arguments.precision,
        )
    except PolyheadError as error:
        print(f"polyhead-export: {error}", file=sys.stderr)
        return 2
    print(f"exported {arguments.checkpoint} to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
