"""docs/first_model.ipynb: all cells run, and show what their text says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.test_arrows import ROOT

NOTEBOOK = ROOT / "docs" / "first_model.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The code cells after a run from top to bottom. The server that they start has ended."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))  # the notebook makes its folder there
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
        patch.setenv("OMP_NUM_THREADS", "1")
        client = nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
        )
        client.execute()
    assert list(folder.glob("first-model-*/server.log"))
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any, kind: str) -> str:
    """What a cell shows as a type of content; printed text is ``stream``."""
    if kind == "stream":
        return "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return "".join(output.data[kind] for output in cell.outputs if kind in output.get("data", {}))


def cell_with(cells: list[Any], source: str) -> Any:
    (found,) = [cell for cell in cells if source in cell.source]
    return found


def test_a_run_shows_its_scores_and_plots(cells: list[Any]) -> None:
    """Training prints nothing; its result is a table and plots."""
    cell = cell_with(cells, "run = train(config)")
    assert shown(cell, "stream") == ""
    html = shown(cell, "text/html")
    assert "<table>" in html
    assert "<td>team</td>" in html
    assert html.count("<svg") >= 2


def test_a_mistake_is_one_line(cells: list[Any]) -> None:
    """It names the key and the nearest known one."""
    printed = shown(cell_with(cells, "except ConfigError"), "stream")
    assert printed.startswith("config: training: unknown field 'epoch' (did you mean 'epochs'?); allowed are epochs")
    assert printed.count("\n") == 1


def test_the_new_tickets_are_measured(cells: list[Any]) -> None:
    """More than half of the answers are right."""
    assert float(shown(cell_with(cells, '["accuracy"]'), "text/plain")) > 0.6
    assert "Measured on 4 rows" in shown(cell_with(cells, "evaluation = evaluate"), "text/html")


def test_the_server_answers_as_the_model(cells: list[Any]) -> None:
    """The first label over HTTP is the label that the engine gives here."""
    here = shown(cell_with(cells, "Predictor.load"), "text/plain")
    assert here == "['billing']"
    assert shown(cell_with(cells, "client.classify"), "text/plain").index("billing") > 0


def test_the_server_ends(cells: list[Any]) -> None:
    """The last cell waits for it."""
    assert shown(cells[-1], "text/plain") == "0"


def test_the_notebook_is_stored_without_outputs() -> None:
    """Outputs would show another machine's numbers; readers make their own."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert Path(NOTEBOOK).stat().st_size < 20_000
