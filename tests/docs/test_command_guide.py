"""docs/client.md: the shell examples, run in order in one folder, print what the guide says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from polyhead_client.testing import FakeServer
from tests.docs.test_client_guide import ANSWERS, GUIDE

SCRIPTS = Path(sys.executable).parent


def test_shell_snippets(tmp_path: Path) -> None:
    """Commands, output and exit codes are as in the guide."""
    text = GUIDE.read_text(encoding="utf-8")
    snippets = re.findall(r"```sh\n(.*?)```\n\n```text\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == text.count("```sh") == 3
    with FakeServer(answer=ANSWERS).serve() as address:
        settings = {"POLYHEAD_CLIENT_SERVER": address, "PATH": f"{SCRIPTS}:{os.environ['PATH']}", "COLUMNS": "100",
                    "PYTHONIOENCODING": "utf-8"}  # fmt: skip
        for code, expected in snippets:
            run = subprocess.run(
                ["bash", "-euc", code], cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True,
                encoding="utf-8", check=False,
            )  # fmt: skip
            assert run.stdout == expected, run.stderr
