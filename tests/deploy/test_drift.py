"""A real Prometheus over a real tritonserver: texts unlike the validation rows fire the alert, others do not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from loadtest.local_server import LocalServer
from tests.deploy.conftest import KNOWN_TEXTS, LABELS
from tests.deploy.prometheus import FOLDER, RULES, Prometheus
from tests.e2e.plain_json import infer_json, json_body

GIVE_UP_S = 60
WINDOW_S = 20  # in place of six hours
ALERT = "PolyheadDrift"
OTHER_TEXTS = [f"Совсем другие тексты номер {number} пришли сегодня утром" for number in range(15)]


def quick_rules() -> dict[str, Any]:
    """The rules with a short window, evaluated each second; the alert waits one second."""
    text = RULES.read_text(encoding="utf-8")
    assert text.count("[6h]") == 1
    rules: dict[str, Any] = yaml.safe_load(text.replace("[6h]", f"[{WINDOW_S}s]"))
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            if rule.get("alert") == ALERT:
                rule["for"] = "1s"
    return rules


@pytest.fixture(scope="module")
def prometheus(served: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the server each second."""
    folder = tmp_path_factory.mktemp("drift")
    (folder / RULES.name).write_text(yaml.safe_dump(quick_rules()), encoding="utf-8")
    text = (FOLDER / "prometheus.yml").read_text(encoding="utf-8").replace("15s", "1s")
    for default, port in (("8002", "metrics"), ("8003", "probe")):
        assert f"127.0.0.1:{default}" in text
        text = text.replace(f"127.0.0.1:{default}", served.url(port))
    with Prometheus(yaml.safe_load(text), folder) as running:
        yield running


def ask_until(served: LocalServer, texts: list[str], is_enough: Callable[[], bool]) -> None:
    """Sends the texts again and again until it is enough."""
    deadline = time.monotonic() + GIVE_UP_S
    while not is_enough():
        assert time.monotonic() < deadline
        assert infer_json(served.url("http"), json_body(texts, ["SCORES"]))[0] == 200
        time.sleep(0.1)


def by_head(prometheus: Prometheus, expression: str) -> dict[tuple[str, str], float]:
    """The numbers of an expression, by what is counted and head."""
    found = prometheus.query(expression)
    return {(one["metric"]["of"], one["metric"].get("head", "")): float(one["value"][1]) for one in found}


def firing(prometheus: Prometheus) -> set[tuple[str, str]]:
    """What the alert fires for: what is counted and head."""
    return set(by_head(prometheus, f'ALERTS{{alertname="{ALERT}",alertstate="firing"}}'))


def test_only_texts_unlike_the_validation_rows_fire_the_alert(served: LocalServer, prometheus: Prometheus) -> None:
    """Known texts have a distance near 0 and fire nothing; Russian ones fire it for the script and for answers."""
    texts = "polyhead:distribution:texts6h"
    ask_until(served, KNOWN_TEXTS, lambda: min(by_head(prometheus, texts).values(), default=0) > 400)
    distances = by_head(prometheus, "polyhead:distribution:psi6h")
    assert set(distances) == {
        ("answers", "topic"), ("scores", "topic"), ("near_threshold", "topic"), ("answers", "mood"), ("scores", "mood"),
        ("near_threshold", "mood"), ("scores", "stars"), ("script", ""), ("truncated", ""),
    }  # fmt: skip
    assert max(distances.values()) < 0.05
    assert firing(prometheus) == set()
    ask_until(served, OTHER_TEXTS, lambda: {("script", ""), ("scores", "stars")} <= firing(prometheus))
    assert by_head(prometheus, "polyhead:distribution:psi6h")["script", ""] > 1


def test_labels_come_through_as_they_are(served: LocalServer, prometheus: Prometheus) -> None:
    """Quotes, braces and other alphabets in a label's name do no harm, and a long name is cut."""
    ask_until(served, KNOWN_TEXTS, lambda: bool(prometheus.query("polyhead_distribution_total")))
    found = {
        one["metric"]["bucket"] for one in prometheus.query('polyhead_distribution_total{of="answers",head="topic"}')
    }
    assert found == {LABELS[0], LABELS[1], LABELS[2][:80] + "…", "(rejected)"}
