"""The distribution by itself: it installs and imports without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("torch", "transformers", "polyhead", "typer", "rich", "grpc", "pandas", "pyarrow", "opentelemetry")
MODULES = ("client", "async_client", "testing", "tables", "tracing", "cli")


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with nothing but the client in it."""
    folder = tmp_path_factory.mktemp("client") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    pins = ["-c", str(constraints)] if constraints.is_file() else []
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
    subprocess.run([*pip, str(ROOT / "client")], check=True, cwd=folder)
    return python


def test_client_needs_no_torch(fresh_python: Path, tmp_path: Path) -> None:
    """All modules of the client import without torch and without the extras."""
    imports = "; ".join(f"import polyhead_client.{name}" for name in MODULES)
    code = f"{imports}; import importlib.util as u; assert not any(u.find_spec(name) for name in {ABSENT})"
    # -I: neither PYTHONPATH nor the working directory is searched.
    subprocess.run([str(fresh_python), "-I", "-c", code], check=True, cwd=tmp_path)


def test_installed_command_and_missing_extras(fresh_python: Path, tmp_path: Path) -> None:
    """The command and a gRPC client name the missing extra; the typing marker is installed."""
    command = fresh_python.with_name("polyhead-client")
    result = subprocess.run([str(command)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 2
    assert "pip install './client[cli]'" in result.stderr
    code = "from polyhead_client import Client; Client(protocol='grpc')"
    result = subprocess.run(
        [str(fresh_python), "-I", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "pip install 'tritonclient[grpc]'" in result.stderr
    assert list(fresh_python.parents[1].glob("lib/python*/site-packages/polyhead_client/py.typed"))
