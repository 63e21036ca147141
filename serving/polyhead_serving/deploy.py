"""``polyhead-deploy``: puts a checkpoint into a running server as its next version, or changes nothing.

Proved before it is put in place, loaded beside the version that serves, asked live for the golden answers, and taken
back if anything is wrong. Requests go on being answered throughout (docs/decisions/0012-serving.md).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from polyhead.errors import PolyheadError, RepositoryError, ToleranceError
from polyhead.export import check_name, install_version, prove, retire_version
from polyhead.gate import check_answers
from polyhead.predictor import Predictor
from polyhead.repository import locked, missing_file, remove_version, versions_of
from polyhead_serving.live_server import LiveServer, ServerError

EPILOG = """\
The server must run with --control explicit and the same POLYHEAD_ADMIN_KEY, on a machine that sees the repository:
  POLYHEAD_ADMIN_KEY=... polyhead-serve --control explicit
  POLYHEAD_ADMIN_KEY=... polyhead-deploy runs/reviews

What it does, in this order: reads the server's version; proves the checkpoint on all of golden.jsonl; copies it beside
its place and renames it to the next version number; has the server load it, while the old version serves; asks the new
version for golden.jsonl's texts; removes versions beyond --keep. If the server refuses the version or its live answers
are wrong, the version is removed and the old one serves, as before.

exit codes: 0 the new version serves, 1 it was taken back and the old one serves, 2 refused before anything was changed,
3 the old version could not be brought back: a person is needed
"""


class RolledBackError(PolyheadError):
    """The new version was wrong; the previous one serves."""


class RollbackError(PolyheadError):
    """The new version was wrong, and the previous one could not be brought back."""


@dataclass(frozen=True)
class Deployment:
    """What to put where.

    Attributes:
        keep: how many versions stay on disk, the new one among them.
        load_timeout_s: how long the server may take to load it.
        verify_timeout_s: how long the golden texts may take, live, beside other traffic.
        say: takes one line about each step.
    """

    checkpoint: Path
    repository: Path
    name: str = "gpt2_classifier"
    version: int | None = None
    precision: str = "auto"
    keep: int = 3
    load_timeout_s: float = 300.0
    verify_timeout_s: float = 120.0
    say: Callable[[str], None] = print


def deploy(wanted: Deployment, server: LiveServer) -> int:
    """Makes the server answer with the checkpoint; returns its version.

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
        wanted.say(f"{wanted.name}: version {live} serves; proving {wanted.checkpoint} for version {version}")
        predictor = prove(wanted.checkpoint, wanted.precision)
        labels = model / "labels.txt"
        old_labels = labels.read_bytes() if labels.exists() else None
        try:
            install_version(wanted.checkpoint, predictor.schema.column_names(), model, version)
            wanted.say(f"{wanted.name}: version {version} is in place, proved in {predictor.precision}; loading it")
            began = time.monotonic()
            server.load(wanted.load_timeout_s)
            wanted.say(f"{wanted.name}: loaded in {time.monotonic() - began:.1f} s; asking it for its golden answers")
            worst = verify(server, predictor, version, wanted.verify_timeout_s)
        except BaseException as error:
            _roll_back(server, model, version, live, old_labels, wanted)
            if isinstance(error, PolyheadError) and not isinstance(error, RepositoryError):
                raise RolledBackError(f"{error}; version {live} serves, version {version} was removed") from error
            raise
        wanted.say(f"{wanted.name}: its live scores are within {worst:.2g} of the golden ones")
        for old in versions_of(model)[: -wanted.keep]:
            if retire_version(model, old):
                wanted.say(f"{wanted.name}: removed version {old}, as --keep is {wanted.keep}")
    return version


def next_version(model: Path, live: int, asked: int | None) -> int:
    """The number for a new version.

    Raises:
        RepositoryError: Triton would not take it, or something stands in the way of taking it back.
    """
    highest = max(versions_of(model), default=0)
    if highest > live:
        lacking = missing_file(model, highest)
        state = f"lacks {lacking}" if lacking else "is not what the server answers with"
        raise RepositoryError(
            f"{model / str(highest)}: {state}, while version {live} serves; a copy or a deployment that did not end. "
            "Remove it first: Triton takes the highest version at its next load or start"
        )
    if live not in versions_of(model):
        raise RepositoryError(f"{model}: version {live}, which the server answers with, is not in this repository")
    if asked is not None and asked <= highest:
        raise RepositoryError(f"--version {asked}: must be above {highest}, as Triton serves the highest one")
    return asked or highest + 1


def verify(server: LiveServer, predictor: Predictor, version: int, within_s: float) -> float:
    """The largest distance of the server's answers from the golden ones.

    Raises:
        ServerError, ToleranceError: they are not those of this version's checkpoint.
    """
    golden = predictor.checkpoint.golden()
    answers = server.answers([row.text for row in golden], within_s)
    if answers.version != version:
        raise ServerError(f"the server answers with version {answers.version}, not {version}; see its version_policy")
    if answers.scores.shape != (len(golden), predictor.schema.width):
        raise ToleranceError(f"the server's scores have the shape {answers.scores.shape}")
    return check_answers(
        golden, answers.tokens, answers.scores, predictor.precision, predictor.schema, "live answers to golden.jsonl"
    )


def _roll_back(
    server: LiveServer, model: Path, version: int, live: int, labels: bytes | None, wanted: Deployment
) -> None:
    """Removes the version; where the server has it already, or may get it yet, has it load the previous one."""
    was_installed = (model / str(version)).exists()
    try:
        if was_installed:
            wanted.say(f"{wanted.name}: taking version {version} back")
            remove_version(model, version)
            _put_back(model / "labels.txt", labels)
    except OSError as error:
        raise RollbackError(f"{model}: version {version} could not be removed: {error}") from error
    deadline = time.monotonic() + wanted.verify_timeout_s
    while True:  # a server that has just died is being restarted by its supervisor
        try:
            if was_installed:
                # Also after a load that failed or is still going on: this one is carried out after it.
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


def _put_back(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    elif file.read_bytes() != content:
        fresh = file.with_name(".labels.txt")
        fresh.write_bytes(content)
        os.replace(fresh, file)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; each option's default is its environment variable's value."""
    parser = argparse.ArgumentParser(
        prog="polyhead-deploy",
        description="Put a checkpoint into a running polyhead-serve as its next version, without losing a request.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder made by polyhead-train")

    def add(name: str, variable: str, default: object, about: str, **more: object) -> None:
        about = f"{about} (default: {default}; env {variable})"
        parser.add_argument(f"--{name}", default=os.environ.get(variable, default), help=about, **more)  # type: ignore[arg-type] # all are its own

    add("repository", "POLYHEAD_REPOSITORY", "model_repository", "the server's model repository", type=Path)
    add("name", "POLYHEAD_MODEL", "gpt2_classifier", "model name")
    parser.add_argument("--version", type=int, help="version number (default: the next one)")
    add("grpc", "POLYHEAD_GRPC", "localhost:8001", "HOST:PORT of the server's gRPC")
    add("precision", "POLYHEAD_PRECISION", "auto", "what the server computes in: auto, fp32, bf16 or int8")
    add("keep", "POLYHEAD_KEEP", 3, "how many versions stay on disk", type=int)
    add("load-timeout-s", "POLYHEAD_LOAD_TIMEOUT_S", 300.0, "how long the server may take to load it", type=float)
    add("verify-timeout-s", "POLYHEAD_VERIFY_TIMEOUT_S", 120.0, "how long its golden answers may take", type=float)
    settings = parser.parse_args(argv)
    for name in ("keep", "load_timeout_s", "verify_timeout_s"):
        if not getattr(settings, name) > 0:
            parser.error(f"--{name.replace('_', '-')}: must be above 0, got {getattr(settings, name)}")
    return settings


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    settings = vars(parse(argv))
    if argv is None:
        os.nice(10)  # the proof must not take the cores from what is served beside it
    address = settings.pop("grpc")
    key = os.environ.get("POLYHEAD_ADMIN_KEY", "")
    if not key:
        print("polyhead-deploy: POLYHEAD_ADMIN_KEY: must be set to the server's", file=sys.stderr)
        return 2
    # A deployment that is stopped half way is taken back like one that fails.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        wanted = Deployment(**settings)
        with contextlib.closing(LiveServer(address, wanted.name, key)) as server:
            version = deploy(wanted, server)
    except PolyheadError as error:
        print(f"polyhead-deploy: {error}", file=sys.stderr)
        return {RolledBackError: 1, RollbackError: 3}.get(type(error), 2)
    except KeyboardInterrupt:
        print("polyhead-deploy: stopped; the version that served serves", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    print(f"{wanted.name}: version {version} serves")
    return 0


if __name__ == "__main__":
    sys.exit(main())
