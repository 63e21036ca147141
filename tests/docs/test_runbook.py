"""docs/runbook.md and docs/deploy.md: each alert has a section, and every command, option and name exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY, containers, environment, kustomized, only
from tests.deploy.prometheus import rules
from tests.serving.options import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("runbook.md", "deploy.md")}
SCRIPTS = Path(sys.executable).parent
# Names of secrets, jobs and an image, which look like commands.
NO_COMMANDS = {"polyhead-tls", "polyhead-keys", "polyhead-supervisor", "polyhead-triton", "polyhead-model"}


def sections() -> dict[str, str]:
    """The runbook's text below each alert's heading."""
    parts = re.split(r"^### (.+)\n", PAGES["runbook.md"].partition("## Sections by alert")[2], flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.partition("\n## ")[0] for part in parts[2::2]), strict=True))


def code(page: str) -> list[str]:
    """A page's code: the lines of its blocks, and what stands in the text between backticks."""
    blocks = re.findall(r"```\w*\n(.*?)```", PAGES[page], flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    return "".join(blocks).splitlines() + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def both() -> list[str]:
    """The code of both pages."""
    return [line for page in PAGES for line in code(page)]


@cache
def help_of(*command: str) -> str:
    """What a command of ours says of itself, wide enough that no option is cut."""
    run = [str(SCRIPTS / command[0]), *command[1:], "--help"]
    environ = os.environ | {"COLUMNS": "200", "TERM": "dumb"}
    return subprocess.run(run, capture_output=True, text=True, check=True, env=environ).stdout


def commands() -> set[tuple[str, ...]]:
    """Each command of ours that the pages call, with its subcommand if it has one."""
    found = set()
    for line in both():
        for name, word in re.findall(r"(?:^|\s)(polyhead-[a-z]+)\b(?: ([a-z]+)\b(?![/.]))?", line):
            found.add((name, word) if name == "polyhead-client" and word else (name,))
    return {command for command in found if command[0] not in NO_COMMANDS}


def test_every_alert_has_its_section() -> None:
    """Each alert links to its section, which begins with its severity; there is no section without an alert."""
    alerts = {rule["alert"]: rule for rule in rules("alert")}
    assert sections().keys() == alerts.keys()
    for name, text in sections().items():
        assert alerts[name]["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        urgency = alerts[name]["labels"]["severity"].capitalize()
        assert text.strip().startswith(f"*{urgency}.*"), name


def test_alerts_that_are_named_exist() -> None:
    """Every alert that a section or the dashboard names exists."""
    dashboard = (DEPLOY / "grafana" / "polyhead.json").read_text(encoding="utf-8")
    named = set(re.findall(r"\bPolyhead[A-Z]\w+", "".join(PAGES.values()) + dashboard))
    assert named == {rule["alert"] for rule in rules("alert")}


def test_commands_exist() -> None:
    """Each of ours says what it is when asked for help."""
    assert {("polyhead-client", "ready"), ("polyhead-client", "classify"), ("polyhead-export",)} <= commands()
    for command in commands():
        assert "--help" in help_of(*command)


def test_options_exist() -> None:
    """Each option after one of our commands is in its help, and each that stands alone is polyhead-serve's."""
    seen = 0
    for line in both():
        match = re.match(r"\s*(polyhead-[a-z]+)\b(?: ([a-z]+)\b)?", line)
        if match and match[1] not in NO_COMMANDS:
            command = (match[1], match[2]) if match[1] == "polyhead-client" and match[2] else (match[1],)
            options = re.findall(r"(?<!\S)--[a-z][a-z-]*", line)
        elif re.fullmatch(r"--[a-z-]+", line):
            command, options = ("polyhead-serve",), [line]
        else:
            continue
        for option in options:
            seen += 1
            assert re.search(rf"{option}\b", help_of(*command)), f"{command}: {option}"
    assert seen > 5


def test_variables_exist() -> None:
    """Those of the server are in its help, those of the proxy in deploy/nginx/render."""
    text = " ".join(both())
    ours = set(re.findall(r"\bPOLYHEAD_[A-Z_]+", text))
    assert "POLYHEAD_THREADS" in ours
    for name in ours:
        assert name in help_of("polyhead-deploy" if name.startswith("POLYHEAD_DEPLOY") else "polyhead-serve")
    proxy = only(kustomized(DEPLOY / "kubernetes"), "ConfigMap")["data"]["render"]
    for name in set(re.findall(r"(?<!\S)(?:RATE|CONNECTIONS|TOTAL|METRICS_FROM|BURST)(?!\S)", text)):
        assert f"{{{name}" in proxy


def test_ports_are_the_defaults() -> None:
    """The addresses on 127.0.0.1 are polyhead-serve's own, and the paths there exist."""
    settings = parse()
    known = {settings.http_port, settings.metrics_port, settings.probe_port}
    found = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", " ".join(both()))}
    assert found == known
    forwarded = {port for line in both() if "port-forward" in line for port in re.findall(r" (\d+):(\d+)", line)}
    assert forwarded
    assert {int(port) for pair in forwarded for port in pair} <= known


def test_kubernetes_names_exist() -> None:
    """Namespace, deployment, containers, secrets and the autoscaler's metric are called as the manifests call them."""
    resources = kustomized(DEPLOY / "kubernetes")
    names = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in resources}
    text = " ".join(both())
    assert set(re.findall(r"kubectl -n (\S+)", text)) == {only(resources, "Namespace")["metadata"]["name"]}
    for name in set(
        re.findall(r"\bdeploy/([a-z-]+)\b(?![/.])", " ".join(line for line in both() if "kubectl -n" in line))
    ):
        assert f"deployment/{name}" in names
    pod = only(resources, "Deployment")["spec"]["template"]["spec"]
    for name in set(re.findall(r" -c (\w+)", text)):
        assert name in {container["name"] for container in containers(pod)}
    secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert set(re.findall(r"create secret (?:tls|generic) (\S+)", text)) == secrets
    for metric in only(resources, "HorizontalPodAutoscaler")["spec"]["metrics"]:
        assert f"/{metric['pods']['metric']['name']}" in text
    (label,) = set(re.findall(r"kubectl label namespace \S+ (\S+)=true", text))
    peers = only(resources, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    assert {"namespaceSelector": {"matchLabels": {label: "true"}}} in peers
    (keys,) = (volume for volume in pod["volumes"] if volume["name"] == "keys")
    proxy = next(container for container in containers(pod) if container["name"] == "nginx")
    assert "--from-file=keys" in text
    assert environment(proxy)["KEYS_FILE"].endswith("/keys")
    assert keys["secret"]["secretName"] in secrets


@pytest.mark.parametrize("page", PAGES)
def test_files_and_targets_exist(page: str) -> None:
    """Paths into the repository and make's targets lead somewhere."""
    for path in re.findall(r"\b(?:deploy|docs)/[\w./-]+", " ".join(code(page))):
        if not path.startswith("deploy/polyhead"):
            assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|\s)make ([a-z-]+)", "\n".join(code(page)), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile, target
