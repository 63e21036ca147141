"""``polyhead-deploy``: puts a checkpoint into a running server as its next version, or changes nothing.

It proves the checkpoint, loads it beside the current version, and compares its live answers with the golden ones. If
anything is wrong, it rolls back. The server answers throughout (docs/decisions/0012-serving.md).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from polyhead.errors import PolyheadError, RepositoryError, ToleranceError
from polyhead.export import check_name, install_version, prove, retire_version
from polyhead.files import write_file
from polyhead.gate import check_answers
from polyhead.interrupt import interruptible
from polyhead.predictor import Predictor
from polyhead.repository import locked, missing_file, remove_version, versions_of
from polyhead_serving.live_server import LiveServer, ServerError
from polyhead_serving.typer_app import new_app, seconds

EPILOG = """\b
The server must run with --control explicit and the same POLYHEAD_ADMIN_KEY, and this machine must see its repository:
  POLYHEAD_ADMIN_KEY=... polyhead-serve --control explicit
  POLYHEAD_ADMIN_KEY=... polyhead-deploy runs/reviews

\b
The steps: ask the server for its version; check the checkpoint with all of golden.jsonl; copy it and rename the copy to
the next version number; make the server load it, while the old version serves; compare the live answers to the texts of
golden.jsonl; remove the versions beyond --keep. If the server refuses the new version, or its answers are wrong, the
new version is removed and the old one serves, as before.

\b
Exit codes: 0 the new version serves; 1 rolled back, the old version serves; 2 refused, nothing was changed;
3 the rollback failed, a person is needed; 130 stopped by a signal, the old version serves
"""


class RolledBackError(PolyheadError):
    """The new version was wrong; the previous one serves."""


class RollbackError(PolyheadError):
    """The new version was wrong, and the previous one could not be brought back."""


@dataclass(frozen=True)
class Deployment:
    """What to put where.

    Attributes:
        precision: what the server computes in; None: POLYHEAD_PRECISION, or auto.
        keep: how many versions stay on disk, including the new one.
        load_timeout_s: how long the server may take to load the version.
        verify_timeout_s: how long the live golden answers may take while other requests are answered.
    """

    checkpoint: Path
    repository: Path
    name: str = "gpt2_classifier"
    version: int | None = None
    precision: str | None = None
    keep: int = 3
    load_timeout_s: float = 300.0
    verify_timeout_s: float = 120.0


def deploy(wanted: Deployment, server: LiveServer) -> int:
    """Makes the server answer with the checkpoint; returns the new version's number.

    Raises:
        PolyheadError: nothing was changed.
        RolledBackError: the previous version serves again.
        RollbackError: it does not.
    """
    check_name(wanted.name)
    model = wanted.repository / wanted.name
    if not model.is_dir():
        raise RepositoryError(f"{model}: no such model; a server's first version comes from polyhead-export")
    with locked(model):
        server.check_key()
        live = server.version()
        version = next_version(model, live, wanted.version)
        print(f"{wanted.name}: version {live} serves; proving {wanted.checkpoint} for version {version}")
        predictor = prove(wanted.checkpoint, wanted.precision)
        labels = model / "labels.txt"
        old_labels = labels.read_bytes() if labels.exists() else None
        try:
            install_version(wanted.checkpoint, predictor.schema.column_names(), model, version)
            print(f"{wanted.name}: version {version} is in place, proved in {predictor.precision}; loading it")
            began = time.monotonic()
            server.load(wanted.load_timeout_s)
            print(f"{wanted.name}: loaded in {time.monotonic() - began:.1f} s; asking it for its golden answers")
            worst = verify(server, predictor, version, wanted.verify_timeout_s)
        except BaseException as error:
            _roll_back(server, model, version, live, old_labels, wanted)
            if isinstance(error, PolyheadError) and not isinstance(error, RepositoryError):
                raise RolledBackError(f"{error}; version {live} serves, version {version} was removed") from error
            raise
        print(f"{wanted.name}: its live scores are within {worst:.2g} of the golden ones")
        for old in versions_of(model)[: -wanted.keep]:
            if retire_version(model, old):
                print(f"{wanted.name}: removed version {old}, because --keep is {wanted.keep}")
    return version


def next_version(model: Path, live: int, asked: int | None) -> int:
    """The number for a new version.

    Raises:
        RepositoryError: Triton would not load that number, or the rollback would not work.
    """
    highest = max(versions_of(model), default=0)
    if highest > live:
        missing = missing_file(model, highest)
        state = f"lacks {missing}" if missing else "is not what the server answers with"
        raise RepositoryError(
            f"{model / str(highest)}: {state}, while version {live} serves; a copy or a deployment was interrupted. "
            "Remove this folder first, because Triton takes the highest version at its next load or start"
        )
    if live not in versions_of(model):
        raise RepositoryError(f"{model}: version {live}, which the server answers with, is not in this repository")
    if asked is not None and asked <= highest:
        raise RepositoryError(f"--version {asked}: must be above {highest}, because Triton serves the highest version")
    return asked or highest + 1


def verify(server: LiveServer, predictor: Predictor, version: int, within_s: float) -> float:
    """Compares the server's answers with the golden ones; returns the largest distance.

    Raises:
        ServerError, ToleranceError: they are not the answers of this version's checkpoint.
    """
    golden = predictor.checkpoint.golden()
    answers = server.answers([row.element for row in golden], within_s)
    if answers.version != version:
        raise ServerError(f"the server answers with version {answers.version}, not {version}; see its version_policy")
    if answers.scores.shape != (len(golden), predictor.schema.width):
        raise ToleranceError(f"the server's scores have the shape {answers.scores.shape}")
    place = "live answers to golden.jsonl"
    return check_answers(
        golden, answers.tokens, answers.scores, predictor.precision, predictor.schema, place, answers.answers
    )


def _roll_back(
    server: LiveServer, model: Path, version: int, live: int, labels: bytes | None, wanted: Deployment
) -> None:
    """Removes the new version. If it was installed, the server may have loaded it, and is made to load the old one."""
    was_installed = (model / str(version)).exists()
    try:
        if was_installed:
            print(f"{wanted.name}: rolling back version {version}")
            remove_version(model, version)
            _restore(model / "labels.txt", labels)
    except OSError as error:
        raise RollbackError(f"{model}: version {version} could not be removed: {error}") from error
    deadline = time.monotonic() + wanted.verify_timeout_s
    while True:  # a server that has just died is being restarted by its supervisor
        try:
            if was_installed:
                # Needed also if the load failed or is still running: Triton carries out this load after that one.
                with contextlib.suppress(ServerError):
                    server.load(wanted.load_timeout_s)
            serving = server.answers(["a text"], wanted.verify_timeout_s).version
            if serving == live:
                return
            wrong = f"version {serving} serves"
        except ServerError as error:
            wrong = str(error)
        if time.monotonic() > deadline:
            raise RollbackError(f"version {live} could not be brought back: {wrong}; restart the server")
        time.sleep(1)


def _restore(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    elif file.read_bytes() != content:
        write_file(file, content)


app = new_app("POLYHEAD_DEPLOY")


@app.command(
    help="Put a checkpoint into a running polyhead-serve as its next version, without losing a request.", epilog=EPILOG
)
def command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder made by polyhead-train.")],
    repository: Annotated[Path, typer.Option(help="The server's model repository.")] = Path("model_repository"),
    name: Annotated[str, typer.Option(help="Model name.")] = "gpt2_classifier",
    version: Annotated[int | None, typer.Option(help="Version number; by default the next one.")] = None,
    grpc: Annotated[str, typer.Option(help="HOST:PORT of the server's gRPC port.")] = "127.0.0.1:8001",
    precision: Annotated[
        str | None,
        typer.Option(help="The server's precision: auto, fp32, bf16 or int8; by default POLYHEAD_PRECISION."),
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="How many versions to keep on disk.")] = 3,
    load_timeout_s: Annotated[float, seconds("How long the server may take to load the version.")] = 300.0,
    verify_timeout_s: Annotated[
        float, seconds("How long the server may take to answer the texts of golden.jsonl.")
    ] = 120.0,
) -> None:
    """Reads the options and deploys."""
    key = os.environ.get("POLYHEAD_ADMIN_KEY", "")
    if not key:
        print("polyhead-deploy: POLYHEAD_ADMIN_KEY: must be set to the server's", file=sys.stderr)
        raise typer.Exit(2)
    wanted = Deployment(checkpoint, repository, name, version, precision, keep, load_timeout_s, verify_timeout_s)
    try:
        # A stopped deployment is rolled back like a failed one.
        with interruptible(), contextlib.closing(LiveServer(grpc, name, key, repository)) as server:
            new = deploy(wanted, server)
    except PolyheadError as error:
        print(f"polyhead-deploy: {error}", file=sys.stderr)
        raise typer.Exit({RolledBackError: 1, RollbackError: 3}.get(type(error), 2)) from None
    except KeyboardInterrupt:
        print("polyhead-deploy: stopped; the old version serves", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"{name}: version {new} serves")


def main(arguments: list[str] | None = None) -> None:
    """The console script; ends with SystemExit."""
    if arguments is None:
        os.nice(10)  # checking the checkpoint must not slow down the server on this machine
    app(arguments, prog_name="polyhead-deploy")


if __name__ == "__main__":
    main()
