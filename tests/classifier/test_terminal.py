"""Lines for a person: names from anyone cannot steer a terminal, and an output that fails stops no work."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from polyhead.errors import CheckpointError
from polyhead.export import export_checkpoint
from polyhead.interface import Interface, check_changes
from polyhead.interrupt import interruptible
from polyhead.schema import Head, Schema
from polyhead.terminal import printable, say

ERASE = "\x1b[1A\x1b[2K"  # goes up one line and erases it


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain — ü 東京 🙂 \u200d a\u00a0b", "plain — ü 東京 🙂 \u200d a\u00a0b"),
        (f"a{ERASE}b", r"a\x1b[1A\x1b[2Kb"),
        ("\x9b2K\x07\0\x7f", r"\x9b2K\x07\x00\x7f"),
        ("one\ntwo\rthree\tfour", r"one\ntwo\rthree\tfour"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    """Control characters, line ends, turned directions and half characters become escapes; letters stay."""
    assert printable(text) == shown
    assert str(CheckpointError(text)) == shown


def test_a_label_cannot_hide_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What changes for callers is told in lines, whatever the labels are."""
    labels = ("rain", f"snow{ERASE}")

    def interface(threshold: float) -> Interface:
        return Interface(
            Schema([Head(name="a", kind="multi_label", labels=labels, thresholds=(0.5, threshold))]), 8, None
        )

    check_changes(interface(0.5), interface(0.9), "the live server", is_allowed=True)
    assert capsys.readouterr().out == "changes: head 'a': thresholds snow\\x1b[1A\\x1b[2K 0.5 → 0.9\n"


def test_the_names_of_files_cannot_hide_a_line(
    damaged: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other files are named in one line, also if a name is no text or has a line end; many are counted."""
    path = damaged()
    names = [os.fsencode(f"{number}") for number in range(1, 30)]
    for name in [f"0{ERASE}\nexported".encode(), b"00\xff", *names]:
        Path(os.fsdecode(os.fsencode(path) + b"/" + name)).touch()
    export_checkpoint(path, tmp_path / "repository")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(r"no such files: 0\x1b[1A\x1b[2K\nexported, 00\udcff, 1, 10, 11, 12, 13, 14 and 23 more")


class Full(io.StringIO):
    """An output on a full disk."""

    def write(self, text: str) -> int:
        """Fails."""
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_output_that_fails_is_given_up(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that cannot be written is lost, and so are all after it; nothing is raised."""
    monkeypatch.setattr(sys, stream, Full())
    for _ in range(2):
        say("a line", stream)  # type: ignore[arg-type]
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, stream, closed)
    say("a line", stream)  # type: ignore[arg-type]


SAYS = "import sys, time\nfrom polyhead.terminal import say\nsay('\u2192 one')\nsys.stdin.read()\nsay('two')\n"


def test_a_reader_that_leaves_changes_no_exit_code() -> None:
    """As in `polyhead-deploy ... | head -1`; an encoding that lacks a character is no reason either."""
    options = {"PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(
        [sys.executable, "-c", SAYS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **options}
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"\\u2192 one\n"
        process.stdout.close()
        process.stdin.close()
        assert process.wait(30) == 0


def test_the_end_of_a_terminal_stops_like_ctrl_c() -> None:
    """SIGHUP, which a broken connection sends, must not kill in the middle; under nohup it stays ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt, match="SIGHUP"), interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
