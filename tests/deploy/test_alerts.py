"""The alerts of deploy/prometheus: in promtool, each fires for its scenario and for no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.prometheus import RULES, promtool, rules

REPLICAS = ("a", "b")
TRITON = 'job="polyhead-triton",namespace="n",replica="{}",model="m",version="1"'
SUPERVISOR = 'job="polyhead-supervisor",namespace="n",replica="{}"'
DAY = 24 * 60


def triton(name: str, replica: str, labels: str = "") -> str:
    """A series of Triton's metrics."""
    return f"{name}{{{TRITON.format(replica)}{labels}}}"


def supervisor(name: str, replica: str, labels: str = "") -> str:
    """A series of the supervisor's metrics."""
    return f"{name}{{{SUPERVISOR.format(replica)}{labels}}}"


def waits(replica: str, seconds: float, below: dict[str, int]) -> dict[str, str]:
    """The time in the queue, per minute: the seconds of all requests, and how many of them stay below a time."""
    series = {
        triton("polyhead_queue_seconds_bucket", replica, f',le="{le}"'): f"0+{count}x120"
        for le, count in (below | {"+Inf": 600}).items()
    }
    series[triton("polyhead_queue_seconds_count", replica)] = "0+600x120"
    series[triton("polyhead_queue_seconds_sum", replica)] = f"0+{seconds:g}x120"
    return series


def refused(reason: str) -> str:
    """Replica a's refused requests for a reason."""
    return triton("polyhead_refused_requests_total", "a", f',reason="{reason}"')


def dropped(reason: str) -> str:
    """Replica a's requests that were dropped from the queue for a reason."""
    return triton("polyhead_dropped_requests_total", "a", f',reason="{reason}"')


def failures(reason: str) -> str:
    """Replica a's failed requests for a reason."""
    return triton("nv_inference_request_failure", "a", f',reason="{reason}"')


def restarts(reason: str) -> str:
    """Replica a's restarts for a reason."""
    return supervisor("polyhead_restarts_total", "a", f',reason="{reason}"')


def says(
    replica: str, of: str, per_minute: dict[str, float], rows: dict[str, int], reference: str = "1234abcd"
) -> dict[str, str]:
    """What a replica says: texts per minute in each bucket, and validation rows in each."""
    labels = f',reference="{reference}",of="{of}",head="{"" if of == "script" else "topic"}",bucket="{{}}"'
    return {
        triton("polyhead_distribution_total", replica, labels.format(bucket)): f"0+{texts:g}x120"
        for bucket, texts in per_minute.items()
    } | {
        triton("polyhead_distribution_expected", replica, labels.format(bucket)): f"{texts}x120"
        for bucket, texts in rows.items()
    }


VALIDATION = {"news": 800, "sport": 200, "(rest)": 0}


def healthy() -> dict[str, str]:
    """Two replicas with 600 requests of one text per minute each, and one sample per minute, for two hours."""
    series = {}
    for replica in REPLICAS:
        for name in ("up", "polyhead_ready"):
            series[supervisor(name, replica)] = "1x120"
        series[supervisor("polyhead_canary_seconds", replica)] = "0.02x120"
        series[supervisor("polyhead_canary_failures_total", replica)] = "0x120"
        for reason in ("exit", "canary", "model_process"):
            series[supervisor("polyhead_restarts_total", replica, f',reason="{reason}"')] = "0x120"
        series[f'up{{job="polyhead-triton",namespace="n",replica="{replica}"}}'] = "1x120"
        for name in ("nv_inference_request_success", "polyhead_texts_total"):
            series[triton(name, replica)] = "0+600x120"
        series[triton("nv_inference_queue_duration_us", replica)] = "0+600000x120"
        series[triton("polyhead_tokens_total", replica)] = "0+60000x120"
        for name in ("polyhead_truncated_texts_total", "polyhead_error_texts_total"):
            series[triton(name, replica)] = "0x120"
        for reason in ("BACKEND", "OTHER", "CANCELED", "REJECTED"):
            series[triton("nv_inference_request_failure", replica, f',reason="{reason}"')] = "0x120"
        for reason in ("queue_full", "deadline"):
            series[triton("polyhead_refused_requests_total", replica, f',reason="{reason}"')] = "0x120"
        for reason in ("expired", "cancelled"):
            series[triton("polyhead_dropped_requests_total", replica, f',reason="{reason}"')] = "0x120"
        series[triton("polyhead_micro_batches_total", replica)] = "0+300x120"
        series[triton("polyhead_waiting_texts", replica)] = (
            "1x120"  # whenever Prometheus looks, one text happens to wait
        )
        series |= says(replica, "answers", {"news": 480, "sport": 120, "(rest)": 0}, VALIDATION)
        series |= says(replica, "script", {"latin": 600, "cyrillic": 0}, {"latin": 1000, "cyrillic": 0})
        series |= waits(replica, 18, {"0.025": 300, "0.1": 600, "1": 600, "2.5": 600})
    return series


NONE_READY = {supervisor("polyhead_ready", replica): "1x59 0x60" for replica in REPLICAS}
GONE = {name: "1x59 stale" for name in healthy() if name.startswith(("up", "polyhead_ready"))}
YESTERDAY = {triton("polyhead_texts_total", replica): f"0+600x{DAY} {600 * DAY}+1x120" for replica in REPLICAS}

DRIFTING = ',reference="1234abcd",of="answers",head="topic",'

# What happens: the series that differ, the minute at which to look, and what fires then; no more and no less.
SCENARIOS: dict[str, tuple[dict[str, str], int, set[str]]] = {
    "all is well": ({}, 110, set()),
    "only canaries come": (
        {triton(name, "a"): "0+12x120" for name in ("nv_inference_request_success", "polyhead_texts_total")},
        110,
        set(),
    ),
    "a replica answers no scrape": ({supervisor("up", "a"): "1x59 0x60"}, 63, {"PolyheadTargetDown"}),
    "a scrape was missed": ({supervisor("up", "a"): "1x59 0x0 1x60"}, 63, set()),
    "all targets are gone": (GONE, 63, {"PolyheadGone"}),
    "all targets are down": (
        {name: "1x59 0x60" for name in healthy() if name.startswith("up")},
        63,
        {"PolyheadTargetDown", "PolyheadGone"},
    ),
    "a replica is loading its model": ({supervisor("polyhead_ready", "a"): "1x59 0x2 1x60"}, 63, set()),
    "a replica stays unready": ({supervisor("polyhead_ready", "a"): "1x59 0x60"}, 66, {"PolyheadNotReady"}),
    "no replica is ready": (NONE_READY, 62, {"PolyheadNoneReady"}),
    "one canary failed": ({supervisor("polyhead_canary_failures_total", "a"): "0x59 1x60"}, 65, set()),
    "canaries fail now and then": (
        {supervisor("polyhead_canary_failures_total", "a"): "0x50 1x2 2x3 3x60"},
        60,
        {"PolyheadCanaryFlapping"},
    ),
    "canaries are slow": ({supervisor("polyhead_canary_seconds", "a"): "0.02x59 4x60"}, 66, {"PolyheadCanarySlow"}),
    "the model process died once": ({restarts("model_process"): "0x59 1x60"}, 65, {"PolyheadRestarted"}),
    "the model process died an hour ago": ({restarts("model_process"): "0x30 1x90"}, 90, set()),
    "restarts follow each other": (
        {restarts("exit"): "0x50 1x4 2x4 3x60"},
        63,
        {"PolyheadRestarted", "PolyheadRestartLoop"},
    ),
    "a dead model process fails requests": ({failures("BACKEND"): "0x59 0+5x60"}, 62, {"PolyheadBackendFailures"}),
    "callers cancel": ({failures("CANCELED"): "0+300x120", dropped("cancelled"): "0+300x120"}, 110, set()),
    "load is refused": ({refused("deadline"): "0x59 0+60x60"}, 70, {"PolyheadSheddingLoad"}),
    "the queue is full": ({refused("queue_full"): "0x59 0+60x60"}, 70, {"PolyheadSheddingLoad"}),
    "a few requests are refused": ({refused("deadline"): "0+3x120"}, 110, set()),
    "accepted requests expire": ({dropped("expired"): "0+3x120"}, 110, {"PolyheadExpiring"}),
    "many accepted requests expire": (
        {dropped("expired"): "0x59 0+60x60"},
        75,
        {"PolyheadExpiring", "PolyheadSheddingLoad"},
    ),
    "the scheduler hangs": (
        {
            triton("polyhead_waiting_texts", "a"): "0x59 9x60",
            triton("polyhead_micro_batches_total", "a"): "0+300x59 17700x60",
        },
        66,
        {"PolyheadStalled"},
    ),
    "a micro-batch takes a minute": (
        {
            triton("polyhead_waiting_texts", "a"): "0x59 9x60",
            triton("polyhead_micro_batches_total", "a"): "0+1x120",
        },
        66,
        set(),
    ),
    "nothing comes and nothing is computed": (
        {
            triton("polyhead_waiting_texts", "a"): "0x120",
            triton("polyhead_micro_batches_total", "a"): "7x120",
        },
        110,
        set(),
    ),
    "the queue grows": (
        waits("a", 720, {"0.025": 0, "0.1": 0, "1": 200, "2.5": 600}),
        110,
        {"PolyheadQueueSaturated", "PolyheadQueueSlow"},
    ),
    "requests wait in Triton": (
        {triton("nv_inference_queue_duration_us", "a"): f"0+{600 * 2_000_000}x120"},
        110,
        {"PolyheadQueueSaturated"},
    ),
    "the queue's tail is long": (
        waits("a", 60, {"0.025": 300, "0.1": 500, "1": 580, "2.5": 585}),
        110,
        {"PolyheadQueueSlow"},
    ),
    "some texts are too long or blank": (
        {
            triton(name, replica): "0+6x120"
            for name in ("polyhead_truncated_texts_total", "polyhead_error_texts_total")
            for replica in REPLICAS
        },
        110,
        set(),
    ),
    "texts are too long": (
        {triton("polyhead_truncated_texts_total", replica): "0+200x120" for replica in REPLICAS},
        110,
        {"PolyheadTruncating"},
    ),
    "texts are blank": (
        {triton("polyhead_error_texts_total", replica): "0+60x120" for replica in REPLICAS},
        110,
        {"PolyheadErrorTexts"},
    ),
    "the answer log loses answers": (
        {triton("polyhead_answer_log_dropped_total", "a", ',reason="disk_full"'): "0+3x120"},
        110,
        {"PolyheadAnswerLogDropping"},
    ),
    "the answer log has lost answers once": (
        {triton("polyhead_answer_log_dropped_total", "a", ',reason="queue_full"'): "0x50 900x70"},
        110,
        set(),
    ),
    "answers change": (
        says("a", "answers", {"news": 60, "sport": 540, "(rest)": 0}, VALIDATION),
        110,
        {"PolyheadDrift"},
    ),
    "answers change at one of two replicas and a little": (
        says("a", "answers", {"news": 420, "sport": 180, "(rest)": 0}, VALIDATION),
        110,
        set(),
    ),
    "answers have changed for ten minutes": (
        {
            triton("polyhead_distribution_total", "a", f'{DRIFTING}bucket="{bucket}"'): f"0+{usual}x100 {end}+{now}x20"
            for bucket, usual, end, now in (("news", 48, 4800, 0), ("sport", 12, 1200, 6000))
        },
        110,
        set(),
    ),
    "answers change at a new version that is rolled out": (
        says("a", "answers", {"news": 120, "sport": 480}, {"news": 200, "sport": 800}, reference="5678abcd"),
        110,
        set(),
    ),
    "a few texts are different": (
        {
            key: value
            for replica in REPLICAS
            for key, value in says(replica, "answers", {"news": 0, "sport": 1, "(rest)": 0}, VALIDATION).items()
        },
        110,
        set(),
    ),
    "few validation rows cannot tell": (
        {
            key: value
            for replica in REPLICAS
            for key, value in says(
                replica, "answers", {"news": 300, "sport": 300, "(rest)": 0}, {"news": 8, "sport": 2, "(rest)": 0}
            ).items()
        },
        110,
        set(),
    ),
    "texts of another script come": (
        says("a", "script", {"latin": 300, "cyrillic": 300}, {"latin": 1000, "cyrillic": 0}),
        110,
        {"PolyheadDrift"},
    ),
    "a model has no validation rows": (
        {
            triton("polyhead_distribution_total", "a", f',of="answers",head="h",bucket="{bucket}"'): "0+99x120"
            for bucket in "xyz"
        },
        110,
        set(),
    ),
    "a model computes in float32": (
        {triton("polyhead_fallback_instances", "a"): "0x59 1x60"},
        66,
        {"PolyheadPrecisionFallback"},
    ),
    "a model that computed in float32 is replaced": (
        {triton("polyhead_fallback_instances", "a"): "1x30 0x90"},
        66,
        set(),
    ),
    "yesterday's callers stay away": (YESTERDAY, DAY + 60, {"PolyheadNoTraffic"}),
    "there was none yesterday either": (
        {triton("polyhead_texts_total", replica): f"0+12x{DAY + 120}" for replica in REPLICAS},
        DAY + 60,
        set(),
    ),
}


def unit_test(name: str, series: dict[str, str], minute: int, expected: set[str]) -> dict[str, object]:
    """promtool's form of a scenario."""
    everything = healthy()
    if minute > 120:  # beyond the day only what the scenario says; else all of these would have gone
        everything = {key: value.replace("x120", f"x{DAY + 120}") for key, value in everything.items()}
    # promtool takes long for windows of six hours, so they stand in the scenarios that are about them and in the first.
    if minute > 120 or (series and not any("distribution" in key for key in series)):
        everything = {key: value for key, value in everything.items() if "distribution" not in key}
    everything |= series
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": key, "values": value} for key, value in everything.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [
                    {"labels": f'{{alertname="{alert}"}}', "value": COUNTS.get((name, alert), 1)} for alert in expected
                ],
            }
        ],
    }


# Alerts that fire once for each of several targets.
COUNTS = {
    ("all targets are down", "PolyheadTargetDown"): 4,
}


def run_scenarios(folder: Path, scenarios: dict[str, tuple[dict[str, str], int, set[str]]]) -> str:
    """promtool's complaints about the scenarios, empty if there are none."""
    said = ""
    for interval, is_long in (("1m", False), ("5m", True)):  # a day of minutes takes promtool long
        chosen = {name: one for name, one in scenarios.items() if (one[1] > 120) == is_long}
        tests = [unit_test(name, *scenario) for name, scenario in chosen.items()]
        file = folder / f"scenarios-{interval}.yml"
        content = {"rule_files": [str(RULES)], "evaluation_interval": interval, "tests": tests}
        file.write_text(yaml.safe_dump(content, width=10_000), encoding="utf-8")
        result = promtool("test", "rules", file)
        said += "" if result.returncode == 0 else result.stdout + result.stderr
    return said


def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    """In each scenario, exactly the expected alerts fire."""
    assert not (said := run_scenarios(tmp_path, SCENARIOS)), said


def test_the_distance_is_the_population_stability_index(tmp_path: Path) -> None:
    """Recorded numbers are those computed by hand; an empty bucket counts as a share of 0.001."""
    of_head = '{head="topic",model="m",namespace="n",of="%s",reference="1234abcd",version="1"}'
    series: dict[str, str] = {}
    for replica in REPLICAS:
        # (0.5 - 0.8) ln(0.5 / 0.8) + (0.5 - 0.2) ln(0.5 / 0.2) = 0.4159
        series |= says(replica, "answers", {"news": 5, "sport": 5, "(rest)": 0}, {"news": 80, "sport": 20, "(rest)": 0})
        # (0.001 - 0.1) ln(0.001 / 0.1) + (0.1 - 0.001) ln(0.1 / 0.001) = 0.9118
        series |= says(replica, "scores", {"0.9": 9, "0.95": 0, "1": 1}, {"0.9": 90, "0.95": 10, "1": 0})
    expected = {
        "round(polyhead:distribution:psi6h, 0.0001)": {"answers": 0.4159, "scores": 0.9118},
        "round(polyhead:distribution:texts6h)": {"answers": 7200, "scores": 7200},  # 6 h, 2 replicas, 10 per minute
        # (1 / 7200 + 1 / 100) (2 + 3.09 sqrt(4)) = 0.0829
        "round(polyhead:distribution:chance6h, 0.0001)": {"answers": 0.0829, "scores": 0.0829},
    }
    test = {
        "name": "psi",
        "interval": "1m",
        "input_series": [{"series": key, "values": value.replace("x120", "x420")} for key, value in series.items()],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": "400m",
                "exp_samples": [{"labels": of_head % of, "value": value} for of, value in values.items()],
            }
            for expression, values in expected.items()
        ],
    }
    file = tmp_path / "psi.yml"
    content = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}
    file.write_text(yaml.safe_dump(content, width=10_000), encoding="utf-8")
    result = promtool("test", "rules", file)
    assert result.returncode == 0, result.stdout + result.stderr


def labels_of(expression: str) -> set[str]:
    """The labels of an expression's series: those it sums by, those of a recorded rule, or those of a target."""
    if by := re.search(r"\bby \(([^)]*)\)", expression):
        return set(by[1].split(", "))
    recorded = {rule["record"]: rule["expr"] for rule in rules("record")}
    name = re.match(r"[\w:]+", expression)
    assert name is not None
    if name[0] in recorded:
        return labels_of(recorded[name[0]])
    return set() if name[0] == "absent" else {"namespace", "replica", "job"}


def test_rules_are_sound() -> None:
    """promtool's linter finds nothing, and summaries use only labels that the alert has."""
    result = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert result.returncode == 0, result.stdout + result.stderr
    for rule in rules("alert"):
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert used <= labels_of(rule["expr"]), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_every_alert_has_a_scenario() -> None:
    """Every alert has a scenario."""
    fired = set().union(*(expected for _, _, expected in SCENARIOS.values()))
    assert fired == {rule["alert"] for rule in rules("alert")}


@pytest.mark.parametrize(("series", "expected"), [({}, {"PolyheadGone"}), (NONE_READY, set())])
def test_a_wrong_expectation_is_noticed(tmp_path: Path, series: dict[str, str], expected: set[str]) -> None:
    """The scenarios can fail: if an alert does not fire, and if one fires that should not."""
    assert "FAILED" in run_scenarios(tmp_path, {"wrong": (series, 62, expected)})
