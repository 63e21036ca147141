"""deploy/kserve: valid by the models that KServe generates from its schema; resources and options agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from tests.deploy.manifests import DEPLOY, containers, environment, kustomized, only
from tests.deploy.schemas import check_kserve
from tests.serving.options import parse

FOLDER = DEPLOY / "kserve"


@pytest.fixture
def resources() -> list[dict[str, Any]]:
    """KServe's resources, without the generated ones."""
    found = [one for one in kustomized(FOLDER) if one["apiVersion"].startswith("serving.kserve.io/")]
    assert {one["kind"] for one in found} == {"ServingRuntime", "InferenceService"}
    return found


def test_kserve_takes_every_resource(resources: list[dict[str, Any]]) -> None:
    """Every resource is valid by KServe's types and Kubernetes' types within them."""
    check_kserve(resources)


def misspell_runtime(runtime: dict[str, Any], _: dict[str, Any]) -> None:
    """A field that KServe does not have."""
    runtime["spec"]["protocolVersion"] = ["v2"]


def misspell_container(runtime: dict[str, Any], _: dict[str, Any]) -> None:
    """A field that Kubernetes does not have, deep within KServe's."""
    runtime["spec"]["containers"][0]["startupProbe"]["httpGet"]["prot"] = 1


def misspell_service(_: dict[str, Any], service: dict[str, Any]) -> None:
    """One of the predictor's fields in the wrong case."""
    service["spec"]["predictor"]["model"]["storageURI"] = "pvc://x"


def forget_format(_: dict[str, Any], service: dict[str, Any]) -> None:
    """A field that must be there."""
    del service["spec"]["predictor"]["model"]["modelFormat"]


def text_for_number(_: dict[str, Any], service: dict[str, Any]) -> None:
    """A value of the wrong type."""
    service["spec"]["predictor"]["minReplicas"] = "2"


@pytest.mark.parametrize(
    "break_field", [misspell_runtime, misspell_container, misspell_service, forget_format, text_for_number]
)
def test_a_wrong_field_is_noticed(
    resources: list[dict[str, Any]], break_field: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    """The types are strict."""
    break_field(only(resources, "ServingRuntime"), only(resources, "InferenceService"))
    with pytest.raises(jsonschema.ValidationError):
        check_kserve(resources)


def test_the_service_asks_for_the_runtime(resources: list[dict[str, Any]]) -> None:
    """The service names the runtime and a format that the runtime supports."""
    runtime, service = only(resources, "ServingRuntime"), only(resources, "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    (supported,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"].items() <= supported.items()
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_requests_come_through_the_proxy(resources: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """KServe sends requests to the first container's first port. nginx listens there and ends after the server."""
    runtime = only(resources, "ServingRuntime")["spec"]
    server, proxy = runtime["containers"]
    assert server["name"] == "kserve-container"
    port = int(environment(proxy)["LISTEN"])
    assert server["ports"][0]["containerPort"] == port
    for probe in ("startupProbe", "readinessProbe"):
        assert server[probe]["httpGet"] == {"path": "/ready", "port": port}
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    settings = parse()
    wait_s = int(proxy["lifecycle"]["preStop"]["exec"]["command"][1])
    grace_s = only(resources, "InferenceService")["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert settings.drain_s + settings.exit_timeout_s < wait_s < grace_s
    assert str(settings.repository) == "/mnt/models"


def test_mounts_are_volumes(resources: list[dict[str, Any]]) -> None:
    """Containers mount the runtime's volumes, all of them, and the config map among them is the generated one."""
    runtime = only(resources, "ServingRuntime")["spec"]
    volumes = {volume["name"]: volume for volume in runtime["volumes"]}
    assert {mount["name"] for container in containers(runtime) for mount in container["volumeMounts"]} == volumes.keys()
    used = {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume}
    assert used == {only(kustomized(FOLDER), "ConfigMap")["metadata"]["name"]}
