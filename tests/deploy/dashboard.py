"""The Grafana dashboard as tests read it: its panels, and its queries for Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "polyhead.json"


def dashboard() -> dict[str, Any]:
    """The file's content."""
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def rows() -> list[dict[str, Any]]:
    """The rows, which are panels that group others."""
    return [panel for panel in dashboard()["panels"] if panel["type"] == "row"]


def panels() -> list[dict[str, Any]]:
    """All panels with queries, also those in a collapsed row."""
    found = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    return found + [panel for row in rows() for panel in row["panels"]]


def queries() -> list[tuple[str, str]]:
    """Panel and expression of each query, with Grafana's variables filled in; annotations are among them."""
    raw = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    raw += [(note["name"], note["expr"]) for note in dashboard()["annotations"]["list"]]
    return [(title, fill_in(expression)) for title, expression in raw]


def fill_in(expression: str) -> str:
    """Replaces variables as Grafana does if 'All' is chosen everywhere."""
    filled = expression.replace("$__rate_interval", "1m")
    for variable in dashboard()["templating"]["list"]:
        filled = re.sub(rf"\${variable['name']}\b", ".*", filled)
    return filled
