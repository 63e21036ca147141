"""Starts the page. Nothing here imports Gradio before its switches are set, so the command stays fast without it."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from types import FrameType

from polyhead_client.errors import UsageError
from polyhead_client.ui.asking import Side, TextOrFields

EXTRA = ("gradio", "gradio_client", "uvicorn", "fastapi", "starlette")
# Gradio and huggingface_hub read these when they are imported: no telemetry, no version check, no history of questions.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can connect."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def start(
    sides: Sequence[Side], examples: Sequence[TextOrFields], host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serves the page until Ctrl-C. Uploaded files are in a private folder, which is removed at the end.

    Args:
        port: 0 takes a free one.
        ready: called with the page's address as soon as it answers.

    Raises:
        UsageError: the extra ``ui`` is not installed, or the address cannot be used.
    """
    with (
        _listen(host, port) as listening,
        exit_on_signals(),
        tempfile.TemporaryDirectory(prefix="polyhead-ui-") as folder,
    ):
        os.environ.update(QUIET | {"GRADIO_TEMP_DIR": folder})
        try:
            application = importlib.import_module("polyhead_client.ui.application")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in EXTRA:
                raise
            raise UsageError(f"{error.name} is missing; in the project folder: pip install './client[ui]'") from error
        application.run(sides, examples, host, listening, ready)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the program as an exception does, so that the folder is removed."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise UsageError(f"cannot listen at {host}:{port} ({reason}); choose another --host or --port") from error
