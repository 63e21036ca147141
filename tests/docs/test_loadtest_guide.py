"""docs/loadtest.md: what it names is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from loadtest.phases import SHAPES
from loadtest.run import BOUNDS, read_objectives

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "loadtest.md").read_text(encoding="utf-8")


def test_options_exist() -> None:
    """Each option that the guide names is locust's, the load test's or polyhead-golden's, and each of ours is named."""
    shown = subprocess.run(
        [sys.executable, "-m", "locust", "--help"], capture_output=True, text=True, check=True
    ).stdout
    ours = set(re.findall(r'add\(\s*"(--[a-z-]+)"', (ROOT / "loadtest" / "options.py").read_text(encoding="utf-8")))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", GUIDE))
    known = set(re.findall(r"--[a-z][a-z-]+", shown)) | ours | {"--text-column"}
    assert named <= known, named - known
    assert len(ours) > 10
    assert ours - named <= {"--model", "--seed"}


def test_shapes_and_objectives_are_all_there(tmp_path: Path) -> None:
    """The table has every shape, and the example's objectives can be read and are all there are."""
    assert re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE) == list(SHAPES)
    example = re.search(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert example is not None
    path = tmp_path / "objectives.toml"
    path.write_text(example[1], encoding="utf-8")
    assert set(read_objectives(path)) | set(re.findall(r"p\d\d_ms", example[1])) == set(BOUNDS)


def test_make_targets_pass_what_they_are_given() -> None:
    """The guide's make commands become the options that it says."""
    lines = re.findall(r"^make loadtest\b([^#\n]*)", GUIDE, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        done = subprocess.run(
            ["make", "-n", "loadtest", *line.split()], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for setting in line.split():
            assert f" {setting.partition('=')[2]} " in done.stdout.replace("\n", " ").replace("\\", " ") + " "
