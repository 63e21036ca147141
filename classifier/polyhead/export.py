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

import numpy as np

from polyhead.checkpoint import swap
from polyhead.errors import PolyheadError, RepositoryError
from polyhead.predictor import Predictor

TOLERANCE = 1e-4  # fp32 engine against transformers' fp32 scores in golden.jsonl


def export_checkpoint(
    checkpoint: Path | str,
    repository: Path | str,
    name: str = "gpt2_classifier",
    version: int = 1,
    replace: bool = False,
) -> Path:
    """Copies a checkpoint to ``repository/name/version/checkpoint`` and writes ``repository/name/labels.txt``.

    A model folder that is not there yet is made from the repository's template. The copy is made in the
    model folder and renamed into place.

    Returns:
        The folder of the version.

    Raises:
        CheckpointError: the checkpoint is damaged.
        RepositoryError: its engine scores leave the tolerance, or that version holds a checkpoint and `replace` is off.
    """
    checkpoint, repository = Path(checkpoint), Path(repository)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise RepositoryError(f"name {name!r}: a model name is letters, digits, '_', '-' and '.'")
    if version < 1:
        raise RepositoryError(f"version {version}: must be 1 or more")
    model = repository / name
    target = model / str(version)
    if (target / "checkpoint").exists() and not replace:
        raise RepositoryError(f"{target}: holds a checkpoint already; take another --version, or --replace it")
    predictor = Predictor.load(checkpoint)
    check_golden(predictor)
    try:
        _install(checkpoint, predictor.schema.column_names(), model, target)
    except OSError as error:
        raise RepositoryError(f"{model}: cannot be written ({error}); nothing was exported") from error
    return target


def check_golden(predictor: Predictor) -> float:
    """The largest distance of the engine's scores from ``golden.jsonl``.

    Raises:
        RepositoryError: it exceeds the tolerance, or tokens or truncation differ: this must not be served.
    """
    golden = predictor.checkpoint.golden()
    encoded = predictor.encode([row.text for row in golden])
    for number, (row, text) in enumerate(zip(golden, encoded, strict=True), start=1):
        if (text.token_count, text.truncated) != (row.token_count, row.truncated):
            raise RepositoryError(
                f"{predictor.checkpoint.path}/golden.jsonl:{number}: "
                f"{text.token_count} tokens here, {row.token_count} there"
            )
    expected = np.array([row.scores for row in golden], dtype=np.float32)
    distance = np.abs(predictor.score(encoded) - expected)
    # Relative where a regression's values are large; scores of labels lie within 1.
    worst = float((distance / np.maximum(1, np.abs(expected))).max())
    if not worst <= TOLERANCE:
        place, column = divmod(int(distance.argmax()), distance.shape[1])
        raise RepositoryError(
            f"{predictor.checkpoint.path}/golden.jsonl:{place + 1}: the engine's score of "
            f"{predictor.schema.column_names()[column]!r} is off by {worst:.2g}, allowed is {TOLERANCE:.0e}"
        )
    return worst


def _install(checkpoint: Path, columns: list[str], model: Path, target: Path) -> None:
    """Copies everything beside its place, then renames: the version first, then what all versions share."""
    template = _template()
    is_new = not model.exists()
    model.mkdir(parents=True, exist_ok=True)
    try:
        # In the model folder, so that a rename never crosses file systems; Triton reads numbered folders only.
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
            swap(staged, target, staging / "old")
            for name in shared:
                os.replace(staging / name, model / name)
    except OSError:
        if is_new:
            shutil.rmtree(model, ignore_errors=True)
        raise


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
    arguments = parser.parse_args(argv)
    try:
        target = export_checkpoint(
            arguments.checkpoint, arguments.repository, arguments.name, arguments.version, arguments.replace
        )
    except PolyheadError as error:
        print(f"polyhead-export: {error}", file=sys.stderr)
        return 2
    print(f"exported {arguments.checkpoint} to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
