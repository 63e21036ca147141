"""``polyhead-deploy``: puts a checkpoint into a running server as its next version, or changes nothing.

It proves the checkpoint, loads it beside the current version, and compares its live answers with the golden ones. If
anything is wrong, it rolls back. The server answers throughout (docs/decisions/0012-serving.md).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyhead.errors import PolyheadError, RepositoryError, SchemaError, ToleranceError
from polyhead.export import check_name, check_source, install_version, is_template, prove_copy, stage_version
from polyhead.gate import check_answers
from polyhead.golden import GoldenRow
from polyhead.interface import Interface, check_changes
from polyhead.interrupt import interruptible
from polyhead.repository import (
    HIGHEST_VERSION,
    commit,
    locked,
    missing_file,
    read_config,
    retire,
    served_versions,
    versions_of,
)
from polyhead.terminal import say
from polyhead_serving.live_server import LiveServer, ServerError
from polyhead_serving.typer_app import new_app, seconds

if TYPE_CHECKING:
    from polyhead.predictor import Predictor  # imports torch

EPILOG = """\b
The server must run with --control explicit and the same POLYHEAD_ADMIN_KEY, and this machine must see its repository:
  POLYHEAD_ADMIN_KEY=... polyhead-serve --control explicit
  POLYHEAD_ADMIN_KEY=... polyhead-deploy runs/reviews

\b
The steps: ask the server for its version and schema; copy the checkpoint, say what changes for callers, and check the
copy with all of golden.jsonl; put it into the repository as the next version; make the server load it, while the old
version serves; compare the live answers to the texts of golden.jsonl; write the version into config.pbtxt, so that a
restart serves it too; remove the versions beyond --keep. If the server refuses the new version, or its answers are
wrong, the new version is removed and the old one serves, as before. If this command is killed, the next deployment,
export or start of polyhead-serve removes what it left.

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
        keep: how many versions stay on disk, including the new one; the one before it stays in any case.
        load_timeout_s: how long the server may take to load the version.
        verify_timeout_s: how long the live golden answers may take while other requests are answered.
        allow_schema_change: whether the new version may break callers of the live one; see `polyhead.interface`.
    """

    checkpoint: Path
    repository: Path
    name: str = "gpt2_classifier"
    version: int | None = None
    precision: str | None = None
    keep: int = 3
    load_timeout_s: float = 300.0
    verify_timeout_s: float = 120.0
    allow_schema_change: bool = False


def deploy(wanted: Deployment, server: LiveServer) -> int:
    """Makes the server answer with the checkpoint; returns the new version's number.

    The server loads the version with a config that only this load has. So until the last step, which replaces
    config.pbtxt, any restart serves the old version.

    Raises:
        PolyheadError: nothing was changed.
        RolledBackError: the previous version serves again.
        RollbackError: it does not.
    """
    check_name(wanted.name)
    model = wanted.repository / wanted.name
    if not model.is_dir():
        raise RepositoryError(f"{model}: no such model; a server's first version comes from polyhead-export")
    with locked(wanted.repository, wanted.name) as staging:
        server.check_key()
        live = settle(server, model, wanted)
        version = next_version(model, live, wanted.version)
        say(f"{wanted.name}: version {live} serves; proving {wanted.checkpoint} for version {version}")
        try:
            staged, predictor = prepare(wanted, server, model, version, staging)
            golden = predictor.checkpoint.golden()
        except OSError as error:
            raise RepositoryError(f"{model}: cannot be written ({error}); nothing was changed") from error
        try:
            install_version(staged, model, version, staging)
            say(f"{wanted.name}: version {version} is in place, proved in {predictor.precision}; loading it")
            began = time.monotonic()
            server.load(wanted.load_timeout_s, read_config(model).pinned_to(version))
            say(f"{wanted.name}: loaded in {time.monotonic() - began:.1f} s; asking it for its golden answers")
            worst = verify(server, predictor, golden, version, wanted.verify_timeout_s)
            commit(model, version, staging)
        except BaseException as error:
            _roll_back(server, model, version, live, staging, wanted)
            if isinstance(error, OSError):
                raise RepositoryError(f"{model}: cannot be written ({error}); version {live} serves") from error
            if isinstance(error, PolyheadError) and not isinstance(error, RepositoryError):
                raise RolledBackError(f"{error}; version {live} serves, version {version} was removed") from error
            raise
        say(f"{wanted.name}: its live scores are within {worst:.2g} of the golden ones")
        # A server that restarted between the load and the last step has read the old config.pbtxt.
        try:
            if wrong := _answers_with(server, model, version, wanted, is_loaded=True):
                raise RollbackError(f"version {version} is in place, but does not answer: {wrong}; restart the server")
            _retire_old(model, version, live, staging, wanted)
        except KeyboardInterrupt:  # too late to take it back: callers may have its answers
            say(f"{wanted.name}: stopped after the last step")
    return version


def settle(server: LiveServer, model: Path, wanted: Deployment) -> int:
    """The version that answers now and after a restart; takes back one whose deployment was interrupted.

    Raises:
        RepositoryError: the server answers with another version than the repository serves.
    """
    live, served = server.version(), served_versions(model)
    if [live] != served and len(served) == 1 and live not in versions_of(model):
        say(f"{wanted.name}: version {live} answers, but its deployment was interrupted; back to {served[0]}")
        if wrong := _answers_with(server, model, served[0], wanted):
            raise RepositoryError(f"{model}: version {served[0]} could not be brought back: {wrong}")
        live = served[0]
    if [live] != served:
        shown = ", ".join(map(str, served)) or "no version"
        raise RepositoryError(
            f"{model}: version {live} answers, but a restart would serve {shown}, as config.pbtxt says. Restart the "
            "server, or make config.pbtxt name the version that is right"
        )
    return live


def next_version(model: Path, live: int, asked: int | None) -> int:
    """The number for a new version.

    Raises:
        RepositoryError: that number is taken or lower than another, or the rollback would not work.
    """
    highest = max(versions_of(model), default=0)
    if missing := missing_file(model, live):
        raise RepositoryError(f"{model}: version {live}, which the server answers with, lacks {missing} here")
    if asked is not None and asked <= highest:
        raise RepositoryError(f"--version {asked}: must be above {highest}, the highest in this repository")
    version = asked or highest + 1
    if version > HIGHEST_VERSION:
        raise RepositoryError(
            f"version {version}: must be at most {HIGHEST_VERSION}; remove version {highest} if no one made it"
        )
    return version


def prepare(wanted: Deployment, server: LiveServer, model: Path, version: int, staging: Path) -> tuple[Path, Predictor]:
    """Copies the checkpoint, tells what changes for callers of the live version, and proves the copy.

    Raises:
        PolyheadError: the checkpoint is damaged or would break callers.
        OSError: it cannot be copied.
    """
    check_source(wanted.checkpoint, wanted.repository)
    staged = stage_version(wanted.checkpoint, model, version, staging)
    new = Interface.of_checkpoint(staged / "checkpoint")
    try:
        check_changes(Interface.of_schema(server.schema()), new, "the live server", wanted.allow_schema_change)
    except SchemaError as error:
        if not wanted.allow_schema_change:
            raise RepositoryError(
                f"{error}, so what changes for callers is not known; --allow-schema-change deploys anyway"
            ) from error
    return staged, prove_copy(wanted.checkpoint, staged, wanted.precision)


def verify(
    server: LiveServer, predictor: Predictor, golden: Sequence[GoldenRow], version: int, within_s: float
) -> float:
    """Compares the server's answers with the golden ones; returns the largest distance.

    Raises:
        ServerError, ToleranceError: they are not the answers of this version's checkpoint.
    """
    answers = server.answers([row.element for row in golden], within_s)
    if answers.version != version:
        raise ServerError(f"the server answers with version {answers.version}, not {version}")
    if answers.scores.shape != (len(golden), predictor.schema.width):
        raise ToleranceError(f"the server's scores have the shape {answers.scores.shape}")
    place = "live answers to golden.jsonl"
    return check_answers(
        golden, answers.tokens, answers.scores, predictor.precision, predictor.schema, place, answers.answers
    )


def _roll_back(server: LiveServer, model: Path, version: int, live: int, staging: Path, wanted: Deployment) -> None:
    """Lets the server load the old version again, and removes the new one, if it was installed."""
    if not (model / str(version)).exists():
        return
    say(f"{wanted.name}: rolling back version {version}")
    try:
        if version in served_versions(model):  # stopped by a signal right after the last step
            commit(model, live, staging)
    except (OSError, RepositoryError) as error:
        raise RollbackError(f"{model}: config.pbtxt names version {version}, and cannot be written: {error}") from error
    try:
        retire(model, version, staging)
    except OSError as error:  # no start serves it
        say(f"{wanted.name}: version {version} could not be removed ({error}); the next deployment tries again")
    if wrong := _answers_with(server, model, live, wanted):
        raise RollbackError(f"version {live} could not be brought back: {wrong}; restart the server")


def _answers_with(
    server: LiveServer, model: Path, version: int, wanted: Deployment, is_loaded: bool = False
) -> str | None:
    """Lets the server load a version, and waits until it answers; returns what is wrong.

    Args:
        is_loaded: whether it may answer already; else a load that failed or is still running needs one after it.
    """
    # Triton carries out this load after one that is still running, so it may take longer than one load.
    within_s = wanted.load_timeout_s + wanted.verify_timeout_s
    deadline = time.monotonic() + wanted.verify_timeout_s
    while True:  # a server that has just died is being restarted by its supervisor
        try:
            if not is_loaded:
                with contextlib.suppress(ServerError):
                    server.load(within_s, read_config(model).pinned_to(version))
            is_loaded = False
            serving = server.answers(["a text"], wanted.verify_timeout_s).version
            if serving == version:
                return None
            wrong = f"version {serving} serves"
        except ServerError as error:
            wrong = str(error)
        if time.monotonic() > deadline:
            return wrong
        time.sleep(1)


def _retire_old(model: Path, version: int, before: int, staging: Path, wanted: Deployment) -> None:
    # The previous version stays in any case: a server that shares this repository may be loading it now.
    for old in versions_of(model)[: -wanted.keep]:
        if old in (version, before):
            continue
        try:
            if retire(model, old, staging, keep=["model.py"] if is_template(model, old) else []):
                say(f"{wanted.name}: removed version {old}, because --keep is {wanted.keep}")
        except OSError as error:
            say(f"{wanted.name}: version {old} could not be removed ({error}); the next deployment tries again")


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
    keep: Annotated[
        int, typer.Option(min=1, help="How many versions to keep on disk; the new and the previous one always stay.")
    ] = 3,
    load_timeout_s: Annotated[float, seconds("How long the server may take to load the version.")] = 300.0,
    verify_timeout_s: Annotated[
        float, seconds("How long the server may take to answer the texts of golden.jsonl.")
    ] = 120.0,
    allow_schema_change: Annotated[
        bool,
        # Can break callers, so no environment variable may set it.
        typer.Option(
            "--allow-schema-change",
            help="Deploy although callers of the live version can break: fewer or other heads, labels or fields.",
            allow_from_autoenv=False,
        ),
    ] = False,
) -> None:
    """Reads the options and deploys."""
    key = os.environ.get("POLYHEAD_ADMIN_KEY", "")
    if not key:
        say("polyhead-deploy: POLYHEAD_ADMIN_KEY: must be set to the server's", "stderr")
        raise typer.Exit(2)
    wanted = Deployment(
        checkpoint, repository, name, version, precision, keep, load_timeout_s, verify_timeout_s, allow_schema_change
    )
    try:
        # A stopped deployment is rolled back like a failed one.
        with interruptible(), contextlib.closing(LiveServer(grpc, name, key, repository)) as server:
            new = deploy(wanted, server)
    except PolyheadError as error:
        say(f"polyhead-deploy: {error}", "stderr")
        raise typer.Exit({RolledBackError: 1, RollbackError: 3}.get(type(error), 2)) from None
    except KeyboardInterrupt:
        say("polyhead-deploy: stopped; the old version serves", "stderr")
        raise typer.Exit(130) from None
    say(f"{name}: version {new} serves")


def main(arguments: list[str] | None = None) -> None:
    """The console script; ends with SystemExit."""
    if arguments is None:
        os.nice(10)  # checking the checkpoint must not slow down the server on this machine
    app(arguments, prog_name="polyhead-deploy")


if __name__ == "__main__":
    main()
