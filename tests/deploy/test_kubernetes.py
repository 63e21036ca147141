"""deploy/kubernetes: valid by the published schemas, and what the resources say of each other is so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml

from polyhead_serving.serve_options import parse
from tests.deploy.manifests import DEPLOY, containers, documents, environment, kustomized, only
from tests.deploy.schemas import KUBERNETES, check_kubernetes

FOLDER = DEPLOY / "kubernetes"
GIVE_UP_S = 5  # what server_process adds to --exit-timeout-s

Resources = list[dict[str, Any]]


@pytest.fixture
def resources() -> Resources:
    """All that `kubectl apply -k` would send."""
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
    """Each of them, the example of the secrets included, by the strict schemas of this version."""
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


@pytest.mark.parametrize("spoil", [misspell_probe, misspell_metric, number_for_text, forget_selector])
def test_a_wrong_field_is_noticed(resources: Resources, spoil: Callable[[Resources], None]) -> None:
    """The schemas are strict."""
    spoil(resources)
    with pytest.raises(jsonschema.ValidationError):
        check_kubernetes(resources, KUBERNETES[0])


def test_selectors_find_the_pods(resources: Resources, pod: dict[str, Any]) -> None:
    """Deployment, Service, disruption budget, network policy and spread all mean the same pods."""
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
    """Service, network policy and probes name the port at which nginx listens; the server's own are not exposed."""
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
    # Nobody but the pod itself reaches Triton: its address is the default, loopback.
    assert not {"POLYHEAD_ADDRESS", "POLYHEAD_HTTP_PORT"} & environment(server).keys()
    assert not {"args", "command"} & server.keys()


def test_mounts_are_there(resources: Resources, pod: dict[str, Any]) -> None:
    """What containers mount is a volume, what volumes name is a config map or secret of ours, and all are in use."""
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


def test_pods_are_locked_down(resources: Resources, pod: dict[str, Any]) -> None:
    """The namespace enforces the restricted standard, and each container keeps to more than it."""
    labels = only(resources, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    context = pod["securityContext"]
    assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert context["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"] == container["resources"]["limits"] or container["name"] != "triton"
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}
    allowed = {"emptyDir", "configMap", "secret"}
    assert all(volume.keys() - {"name"} <= allowed for volume in pod["volumes"])


def test_the_servers_folders_are_writable(pod: dict[str, Any], server: dict[str, Any]) -> None:
    """With a read-only root it still has /tmp and a /dev/shm of memory; the model it may only read."""
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert "readOnly" not in mounts["/tmp"]
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    repository = mounts[environment(server)["POLYHEAD_REPOSITORY"]]
    assert repository["readOnly"]
    (model, *_) = pod["initContainers"]
    assert model["volumeMounts"] == [{"name": repository["name"], "mountPath": "/target"}]


def test_the_servers_options(server: dict[str, Any], monkeypatch: pytest.MonkeyPatch, pod: dict[str, Any]) -> None:
    """polyhead-serve takes its variables, and the times of probes and termination fit them."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    settings = parse([])
    options = {f"POLYHEAD_{name.upper()}" for name in vars(settings)}
    assert environment(server).keys() <= options
    assert pod["terminationGracePeriodSeconds"] > settings.drain_s + settings.exit_timeout_s + GIVE_UP_S
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > settings.startup_timeout_s
    live = server["livenessProbe"]["exec"]["command"]
    assert f"127.0.0.1:{settings.probe_port}/live" in live[-1]
    compile(live[-1], "livenessProbe", "exec")
    # Endpoints must know of the end before the server stops accepting.
    ready = server["readinessProbe"]
    assert settings.drain_s > ready["periodSeconds"] * ready["failureThreshold"]


def test_the_proxy_outlives_the_server(pod: dict[str, Any]) -> None:
    """It is a sidecar in Kubernetes' sense, and found dead sooner than the server could be for its sake."""
    proxy = nginx(pod)
    assert proxy in pod["initContainers"]
    assert proxy["restartPolicy"] == "Always"
    live = proxy["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] < 30
    assert "/etc/polyhead-nginx/render" in proxy["args"][0]
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "nginx")
    assert volume["configMap"]["defaultMode"] & 0o111 == 0o111


def test_the_proxys_options_are_renders(pod: dict[str, Any], resources: Resources) -> None:
    """Each of its variables is one that deploy/nginx/render documents."""
    scripts = only(resources, "ConfigMap")["data"]
    assert scripts.keys() == {"render", "nginx.conf.template", "guard.js"}
    for name in environment(nginx(pod)):
        assert name in scripts["render"]


def test_the_autoscalers_metric_comes_from_the_adapter(resources: Resources) -> None:
    """Its name is what the adapter's rule makes of Triton's counters, whose quotient it is."""
    (metric,) = only(resources, "HorizontalPodAutoscaler")["spec"]["metrics"]
    values = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yml").read_text(encoding="utf-8"))
    (rule,) = values["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].startswith(rule["name"]["matches"].strip("^$"))
    assert rule["resources"]["overrides"] == {name: {"resource": name} for name in ("namespace", "pod")}
    above, below = rule["metricsQuery"].split("/", 1)
    assert "nv_inference_queue_duration_us{<<.LabelMatchers>>}" in above
    assert "nv_inference_compute_infer_duration_us{<<.LabelMatchers>>}" in below
    behaviour = only(resources, "HorizontalPodAutoscaler")["spec"]["behavior"]
    assert behaviour["scaleDown"]["stabilizationWindowSeconds"] > behaviour["scaleUp"]["stabilizationWindowSeconds"]


def test_disruptions_leave_a_replica(resources: Resources) -> None:
    """There are always more replicas than may be taken at once."""
    least = only(resources, "HorizontalPodAutoscaler")["spec"]["minReplicas"]
    assert least > only(resources, "PodDisruptionBudget")["spec"]["maxUnavailable"] >= 1


def test_prometheus_finds_the_pods(resources: Resources, pod: dict[str, Any]) -> None:
    """Its selector, its port's name and the proxy's allowance fit the pods, and the policy lets its namespace in."""
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
    (rule,) = only(resources, "NetworkPolicy")["spec"]["ingress"]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}} in rule["from"]
    assert environment(nginx(pod))["METRICS_FROM"]
