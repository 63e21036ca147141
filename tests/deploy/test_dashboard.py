"""deploy/grafana: the dashboard is valid by Grafana's own models."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy.dashboard import dashboard, fill_in, panels, queries, rows

WIDTH = 24


def through_grafana(content: dict[str, Any]) -> dict[str, Any]:
    """Read and written by the models that Grafana generates from its schema. They drop unknown fields."""
    plugins.register_default_plugins()
    return dict(json.loads(json.dumps(Dashboard.from_json(content), cls=JSONEncoder)))


def lost(before: Any, after: Any, path: str = "") -> list[str]:
    """The places of `before` that `after` lacks; defaults that were added are no loss."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            place
            for key, value in before.items()
            for place in (lost(value, after[key], f"{path}/{key}") if key in after else [f"{path}/{key}"])
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [place for n, (old, new) in pairs for place in lost(old, new, f"{path}/{n}")]
    return [] if before == after else [path]


def test_grafana_knows_every_field() -> None:
    """Grafana's schema has every field of the file."""
    content = dashboard()
    assert lost(content, through_grafana(content)) == []


@pytest.mark.parametrize(
    ("path", "foreign"),
    [((), "tittle"), (("panels", 1), "descripton"), (("panels", 1, "fieldConfig", "defaults"), "units")],
)
def test_a_misspelt_field_is_noticed(path: tuple[Any, ...], foreign: str) -> None:
    """The check above can fail."""
    content = dashboard()
    place: Any = content
    for step in path:
        place = place[step]
    place[foreign] = "x"
    assert lost(content, through_grafana(content)) == ["".join(f"/{step}" for step in (*path, foreign))]


def test_panels_have_ids_and_units() -> None:
    """Each panel has its own id and title, a unit that Grafana knows, and the dashboard's data source."""
    everything = [*panels(), *rows()]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    known = {value for name, value in vars(units).items() if not name.startswith("_") and isinstance(value, str)}
    for panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"] in known
        assert {target["refId"] for target in panel["targets"]} == set("ABCDE"[: len(panel["targets"])])
        for source in [panel, *panel["targets"]]:
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_do_not_overlap() -> None:
    """No panel overlaps another on the grid."""
    for panel in [*panels(), *rows()]:
        grid = panel["gridPos"]
        assert grid["x"] >= 0
        assert grid["x"] + grid["w"] <= WIDTH
        assert grid["w"] * grid["h"] > 0
    for one, other in combinations([panel["gridPos"] for panel in [*panels(), *rows()]], 2):
        apart = [one["x"] + one["w"] <= other["x"], other["x"] + other["w"] <= one["x"]]
        apart += [one["y"] + one["h"] <= other["y"], other["y"] + other["h"] <= one["y"]]
        assert any(apart), (one, other)


def test_variables_are_all_filled_in() -> None:
    """No query uses a variable that the dashboard does not define."""
    assert fill_in('m{replica=~"$replica"}') == 'm{replica=~".*"}'
    assert not [query for _, query in queries() if "$" in query]
