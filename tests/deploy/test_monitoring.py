"""A real Prometheus scrapes a real tritonserver: the queries of dashboard, rules and autoscaler give series."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.local_server import VENV, LocalServer
from tests.deploy.conftest import KNOWN_TEXTS
from tests.deploy.dashboard import queries
from tests.deploy.prometheus import FOLDER, RULES, Prometheus, promtool, rules
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.proxied import Proxied

SCRAPES = 4  # a rate needs two; the rules read each other
GIVE_UP_S = 60


def config_in_a_pod(proxied: Proxied) -> dict[str, Any]:
    """deploy/prometheus/kubernetes.yml as if discovery had found one pod, behind its proxy.

    Debian's Prometheus is built without Kubernetes' discovery, so the labels that it would find are set on a static
    target. Paths, TLS and relabelling are the file's own.
    """
    config: dict[str, Any] = yaml.safe_load((FOLDER / "kubernetes.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    assert config["rule_files"] == [RULES.name]
    found = {"container_port_name": "https", "phase": "Running", "name": "polyhead-0"}
    labels = {f"__meta_kubernetes_pod_{name}": value for name, value in found.items()}
    labels["__meta_kubernetes_namespace"] = "polyhead"
    for job in config["scrape_configs"]:
        del job["kubernetes_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{proxied.port}"], "labels": labels}]
    return config


@pytest.fixture(scope="module")
def traffic(served: LocalServer) -> LocalServer:
    """A server that has answered texts of all kinds, also some that are too long and some without an answer."""
    for _ in range(5):
        ask(served)
    return served


def ask(served: LocalServer) -> None:
    """Sends one request of all kinds of texts."""
    status, _ = infer_json(served.url("http"), json_body([*KNOWN_TEXTS, " "], ["PREDICTION"]))
    assert status == 200


@pytest.fixture(scope="module")
def prometheus(traffic: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped that server several times, with requests in between."""
    folder = tmp_path_factory.mktemp("prometheus")
    quick = re.sub(r"interval: (15s|1m)", "interval: 1s", RULES.read_text(encoding="utf-8"))
    assert quick.count("interval: 1s") == 3
    (folder / RULES.name).write_text(quick, encoding="utf-8")
    behind = {"INFERENCE": traffic.url("http"), "METRICS": traffic.url("metrics"), "PROBE": traffic.url("probe")}
    with Proxied(**behind) as proxied, Prometheus(config_in_a_pod(proxied), folder) as running:
        deadline = time.monotonic() + GIVE_UP_S
        while not enough(running):
            assert time.monotonic() < deadline, running.api("targets")
            ask(traffic)
            time.sleep(0.3)
        yield running


def enough(prometheus: Prometheus) -> bool:
    """Whether all targets were scraped often enough, and the rules evaluated after that."""
    counts = [float(series["value"][1]) for series in prometheus.query("count_over_time(up[5m])")]
    recorded = {rule["record"] for rule in rules("record")}
    names = prometheus.api("label/__name__/values")
    return len(counts) == 2 and min(counts) >= SCRAPES and recorded <= set(names)


def needs_a_gpu(expression: str) -> bool:
    """Whether the expression uses metrics that Triton has only with a GPU."""
    return "nv_gpu_" in expression


def test_targets_get_the_pods_labels(prometheus: Prometheus) -> None:
    """Both endpoints of the pod are up, with the labels that rules and autoscaler use."""
    series = prometheus.query("up")
    assert [one["value"][1] for one in series] == ["1", "1"]
    assert {one["metric"]["job"] for one in series} == {"polyhead-triton", "polyhead-supervisor"}
    expected = {"namespace": "polyhead", "pod": "polyhead-0", "replica": "polyhead-0"}
    for one in series:
        assert expected.items() <= one["metric"].items()


@pytest.mark.parametrize(("panel", "expression"), queries())
def test_every_panel_shows_something(prometheus: Prometheus, panel: str, expression: str) -> None:
    """Its query parses and gives a series, except those for GPUs and for restarts."""
    series = prometheus.query(expression)
    if needs_a_gpu(expression) or panel == "Restarts":
        assert series == []
    else:
        assert series, expression


@pytest.mark.parametrize("rule", rules("record"), ids=lambda rule: rule["record"])
def test_every_recorded_rule_gives_a_series(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    """It records a number for this replica."""
    for expression in (rule["record"], rule["expr"]):
        series = prometheus.query(expression)
        assert series, expression
        assert all(float(one["value"][1]) >= 0 for one in series)


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"])
def test_every_alert_reads_what_is_there(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    """Every metric in its expression exists with its labels."""
    prometheus.query(rule["expr"])
    selectors = re.findall(r"\b(?:polyhead|nv|up)\w*(?::\w+)*(?:\{[^}]*\})?(?=[^\w(]|$)", rule["expr"])
    assert selectors
    for selector in selectors:
        assert prometheus.query(selector), selector


def test_what_is_wrong_is_pending(prometheus: Prometheus) -> None:
    """This traffic has too many blank and too many long texts: only these two alerts are pending."""
    alerts = {alert["labels"]["alertname"] for alert in prometheus.api("alerts")["alerts"]}
    assert alerts == {"PolyheadErrorTexts", "PolyheadTruncating"}


AUTOSCALER_RULES = yaml.safe_load((FOLDER / "adapter.yml").read_text(encoding="utf-8"))["rules"]["custom"]


@pytest.mark.parametrize("rule", AUTOSCALER_RULES, ids=lambda rule: rule["name"]["as"])
def test_the_autoscalers_queries_give_a_number_per_pod(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    """The adapter's queries, with their placeholders filled in, give one number for each pod."""
    assert prometheus.query(rule["seriesQuery"])
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
    query = query.replace("<<.LabelMatchers>>", 'namespace="polyhead",pod=~"polyhead-0|polyhead-1"')
    (series,) = prometheus.query(query)
    assert series["metric"] == {"pod": "polyhead-0"}
    assert 0 <= float(series["value"][1]) < 100


def test_gpu_metrics_are_tritons() -> None:
    """The GPU metrics, which cannot be scraped here, are names in Triton's own library."""
    names = {name for _, query in queries() for name in re.findall(r"nv_gpu_\w+", query)}
    assert names
    (library,) = VENV.glob("lib/python3.*/site-packages/nvidia_pytriton.libs/libtritonserver-*.so")
    content = library.read_bytes()
    for name in names:
        assert name[:16].encode() in content, name  # the compiler cuts short texts into pieces of that size


def test_the_config_beside_one_server(traffic: LocalServer, tmp_path: Path) -> None:
    """deploy/prometheus/prometheus.yml is valid, and with this server's ports it finds the server."""
    file = FOLDER / "prometheus.yml"
    result = promtool("check", "config", file)
    assert result.returncode == 0, result.stdout + result.stderr
    text = file.read_text(encoding="utf-8").replace("15s", "1s")
    for default, port in (("8002", "metrics"), ("8003", "probe")):
        assert text.count(f"127.0.0.1:{default}") == 1
        text = text.replace(f"127.0.0.1:{default}", traffic.url(port))
    (tmp_path / RULES.name).write_text(RULES.read_text(encoding="utf-8"), encoding="utf-8")
    with Prometheus(yaml.safe_load(text), tmp_path) as running:
        deadline = time.monotonic() + GIVE_UP_S
        while len(series := running.query("up == 1")) < 2:
            assert time.monotonic() < deadline, running.api("targets")
            time.sleep(0.2)
    assert {one["metric"]["replica"] for one in series} == {"127.0.0.1"}
