"""What another user of this machine can do; becoming another user needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NOBODY = 65534
_SETPRIV = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")


def _command(program: str, arguments: tuple[str, ...]) -> list[str]:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("becoming another user needs root and setpriv")
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
    if python is None:
        pytest.skip("there is no Python that another user can run")
    return [*_SETPRIV, python, "-I", "-c", program, *arguments]


def run_as_nobody(program: str, *arguments: str) -> str:
    """Runs a Python program as the user ``nobody``; returns what it prints."""
    command = _command(program, arguments)
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=True).stdout


@contextmanager
def started_as_nobody(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a Python program as ``nobody``, waits for the first line that it prints, and kills it at the end."""
    process = subprocess.Popen(_command(program, arguments), cwd="/", stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline(), "the program printed nothing"
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
