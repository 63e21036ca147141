"""deploy/kubernetes: valid by the published schemas; resources, options and other files agree with each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import DEPLOY, containers, documents, environment, kustomized, only
from tests.deploy.schemas import KUBERNETES, check_kubernetes
from tests.serving.options import parse

FOLDER = DEPLOY / "kubernetes"
KILL_AFTER_S = 5  # server_process adds this to --exit-timeout-s

Resources = list[dict[str, Any]]


@pytest.fixture
def resources() -> Resources:
    """Everything that `kubectl apply -k` sends."""
    return kustomized(FOLDER)


@pytest.fixture
def pod(resources: Resources) -> dict[str, Any]:
    """The pods' spec."""
    return dict(only(resources, "Deployment")["spec"]["template"]["spec"])


@pytest.fixture
def server(pod: dict[str, Any]) -> dict[str, Any]:
    """The container with polyhead-serve."""
    (found,) = pod["containers"]
    return dict(found)


def nginx(pod: dict[str, Any]) -> dict[str, Any]:
    """The proxy's container."""
    (found,) = (container for container in containers(pod) if container["name"] == "nginx")
    return dict(found)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_resource(resources: Resources, version: str) -> None:
    """Every resource, including the example secrets, is valid by the strict schemas of this version."""
    everything = resources + documents(FOLDER / "secrets.example.yaml")
    assert {resource["kind"] for resource in everything} == {
        "Namespace", "ConfigMap", "Secret", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler",
        "NetworkPolicy",
    }  # fmt: skip
    check_kubernetes(everything, version)


def misspell_probe(resources: Resources) -> None:
    """A field that no schema has, deep in a pod."""
    pod = only(resources, "Deployment")["spec"]["template"]["spec"]
    pod["containers"][0]["readinessProbe"]["failureTreshold"] = 3


def misspell_metric(resources: Resources) -> None:
    """The same in the autoscaler."""
    only(resources, "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pod"] = {}


def number_for_text(resources: Resources) -> None:
    """A variable's value that YAML takes for a number."""
    only(resources, "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = 15


def forget_selector(resources: Resources) -> None:
    """A field that must be there."""
    del only(resources, "Deployment")["spec"]["selector"]


@pytest.mark.parametrize("break_field", [misspell_probe, misspell_metric, number_for_text, forget_selector])
def test_a_wrong_field_is_noticed(resources: Resources, break_field: Callable[[Resources], None]) -> None:
    """The schemas are strict."""
    break_field(resources)
    with pytest.raises(jsonschema.ValidationError):
        check_kubernetes(resources, KUBERNETES[0])


def test_selectors_find_the_pods(resources: Resources, pod: dict[str, Any]) -> None:
    """Deployment, Service, disruption budget, network policy and topology spread select the same pods."""
    deployment = only(resources, "Deployment")["spec"]
    selectors = [
        deployment["selector"]["matchLabels"],
        only(resources, "Service")["spec"]["selector"],
        only(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(resources, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= deployment["template"]["metadata"]["labels"].items()
    target = only(resources, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": only(resources, "Deployment")["metadata"]["name"],
    }
    assert "replicas" not in deployment


def test_ports_are_the_proxys(resources: Resources, pod: dict[str, Any], server: dict[str, Any]) -> None:
    """Service, network policy and probes use nginx's port; the server's own ports are not exposed."""
    proxy = nginx(pod)
    ports = {port["name"]: port["containerPort"] for port in proxy["ports"]}
    assert ports == {"https": int(environment(proxy)["LISTEN"])}
    named = [port["targetPort"] for port in only(resources, "Service")["spec"]["ports"]]
    rules = only(resources, "NetworkPolicy")["spec"]["ingress"]
    named += [port["port"] for rule in rules for port in rule["ports"]]
    named += [proxy[probe]["tcpSocket"]["port"] for probe in ("startupProbe", "livenessProbe")]
    assert set(named) == {"https"}
    for probe in ("startupProbe", "readinessProbe"):
        assert server[probe]["httpGet"] == {"scheme": "HTTPS", "path": "/ready", "port": ports["https"]}
    assert "ports" not in server
    # Only the pod itself reaches Triton: its address is the default, loopback.
    assert not {"POLYHEAD_SERVE_ADDRESS", "POLYHEAD_SERVE_HTTP_PORT"} & environment(server).keys()
    assert not {"args", "command"} & server.keys()


def test_mounts_are_there(resources: Resources, pod: dict[str, Any]) -> None:
    """Mounts are volumes, volumes name our config maps and secrets, all are used, and nginx's files are among them."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = [mount for container in containers(pod) for mount in container["volumeMounts"]]
    assert {mount["name"] for mount in mounts} == volumes.keys()
    examples = documents(FOLDER / "secrets.example.yaml")
    maps = {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume}
    assert maps == {resource["metadata"]["name"] for resource in resources if resource["kind"] == "ConfigMap"}
    secrets = {volume["secret"]["secretName"]: name for name, volume in volumes.items() if "secret" in volume}
    assert secrets.keys() == {example["metadata"]["name"] for example in examples}
    # The files that nginx is told to read are keys of those secrets, at their mounts.
    proxy = nginx(pod)
    folders = {mount["name"]: mount["mountPath"] for mount in proxy["volumeMounts"]}
    files = {
        f"{folders[secrets[example['metadata']['name']]]}/{key}"
        for example in examples
        for key in example["stringData"]
    }
    assert {environment(proxy)[name] for name in ("CERTIFICATE", "CERTIFICATE_KEY", "KEYS_FILE")} == files
    assert {example["metadata"]["namespace"] for example in examples} == {
        resource["metadata"]["namespace"] for resource in resources if resource["kind"] != "Namespace"
    }


def test_pods_fit_the_namespace(resources: Resources, pod: dict[str, Any]) -> None:
    """The namespace refuses pods that break the restricted standard; every container keeps it."""
    labels = only(resources, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"] > 0) == (True, True)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(pod):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_servers_folders_are_writable(pod: dict[str, Any], server: dict[str, Any]) -> None:
    """With a read-only root, the server can still write to /tmp and /dev/shm. The init container fills the model."""
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert "readOnly" not in mounts["/tmp"]
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    repository = mounts[environment(server)["POLYHEAD_SERVE_REPOSITORY"]]
    assert repository["readOnly"]
    (model, *_) = pod["initContainers"]
    assert model["volumeMounts"] == [{"name": repository["name"], "mountPath": "/target"}]


def test_the_servers_options(server: dict[str, Any], monkeypatch: pytest.MonkeyPatch, pod: dict[str, Any]) -> None:
    """Every variable is one of polyhead-serve's options, and the times of probes and termination fit them."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    settings = parse()
    options = {f"POLYHEAD_SERVE_{name.upper()}" for name in vars(settings)}
    assert environment(server).keys() <= options
    assert pod["terminationGracePeriodSeconds"] > settings.drain_s + settings.exit_timeout_s + KILL_AFTER_S
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > settings.startup_timeout_s
    live = server["livenessProbe"]["exec"]["command"]
    assert f"127.0.0.1:{settings.probe_port}/live" in live[-1]
    compile(live[-1], "livenessProbe", "exec")
    # The endpoints must be updated before the server stops accepting.
    ready = server["readinessProbe"]
    assert settings.drain_s > ready["periodSeconds"] * ready["failureThreshold"]


def test_the_proxys_options_are_renders(pod: dict[str, Any], resources: Resources) -> None:
    """deploy/nginx/render documents each of its variables, and nginx's container may execute it."""
    scripts = only(resources, "ConfigMap")["data"]
    assert scripts.keys() == {
        "render", "nginx.conf.template", "client.js", "json.js", "guard.js", "classify.js", "openapi.json",
    }  # fmt: skip
    for name in environment(nginx(pod)):
        assert name in scripts["render"]
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "nginx")
    assert volume["configMap"]["defaultMode"] & 0o111 == 0o111


def test_the_autoscalers_metrics_come_from_the_adapter(resources: Resources) -> None:
    """The autoscaler's metrics are those that the adapter's rules make."""
    metrics = only(resources, "HorizontalPodAutoscaler")["spec"]["metrics"]
    values = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yml").read_text(encoding="utf-8"))
    made = values["rules"]["custom"]
    assert [metric["pods"]["metric"]["name"] for metric in metrics] == [rule["name"]["as"] for rule in made]
    for rule in made:
        assert rule["seriesQuery"].startswith(rule["name"]["matches"].strip("^$"))


def test_disruptions_leave_a_replica(resources: Resources) -> None:
    """There are always more replicas than a disruption may take at once."""
    least = only(resources, "HorizontalPodAutoscaler")["spec"]["minReplicas"]
    assert least > only(resources, "PodDisruptionBudget")["spec"]["maxUnavailable"] >= 1


def test_prometheus_finds_the_pods(resources: Resources, pod: dict[str, Any]) -> None:
    """Its selector and its port's name fit the pods, and the proxy has its paths."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "kubernetes.yml").read_text(encoding="utf-8"))
    labels = only(resources, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for job in config["scrape_configs"]:
        (discovery,) = job["kubernetes_sd_configs"]
        name, _, value = discovery["selectors"][0]["label"].partition("=")
        assert labels[name] == value
        keep = next(rule for rule in job["relabel_configs"] if rule["action"] == "keep")
        assert keep["regex"] in {port["name"] for port in nginx(pod)["ports"]}
        assert job["scheme"] == "https"
        assert f"location = {job['metrics_path']} " in only(resources, "ConfigMap")["data"]["nginx.conf.template"]
