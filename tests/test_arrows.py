"""Which distribution may import which: the arrows of ARCHITECTURE.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

OURS = {
    "polyhead", "polyhead_serving", "polyhead_rows", "polyhead_training", "polyhead_client", "polyhead_scoring",
    "loadtest",
    "demo", "benchmarks", "tests",
}  # fmt: skip
HEAVY = {"torch", "transformers", "datasets", "tritonclient", "locust", "sklearn", "matplotlib", "ray"}

# Folder: what of OURS and HEAVY its files may import.
ALLOWED = {
    "classifier/polyhead": {"polyhead", "torch"},
    "serving/polyhead_serving": {"polyhead", "polyhead_serving", "tritonclient"},
    "rows/polyhead_rows": {"polyhead_rows"},
    "training/polyhead_training": {
        "polyhead", "polyhead_rows", "polyhead_training", "torch", "transformers", "datasets", "sklearn", "matplotlib",
    },
    "client/polyhead_client": {"polyhead_client", "tritonclient"},
    "scoring/polyhead_scoring": {"polyhead", "polyhead_rows", "polyhead_client", "polyhead_scoring", "torch", "ray"},
    "loadtest": {"loadtest", "polyhead_client", "polyhead_rows", "locust"},
    "model_repository": {"polyhead", "polyhead_serving", "torch"},
    "demo": {"polyhead_client"},
}  # fmt: skip


def imports_of(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_follow_the_arrows(folder: str) -> None:
    """No file imports what its folder may not."""
    files = [path for path in (ROOT / folder).rglob("*.py") if "checkpoint" not in path.parts]
    assert files
    for path in files:
        forbidden = imports_of(path) & (OURS | HEAVY) - ALLOWED[folder]
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"
