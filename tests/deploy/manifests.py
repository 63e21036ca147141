"""The manifests of deploy/, combined as kustomize does, as far as they need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
# What `kustomized` understands; of `images` and `configurations` it needs nothing.
FIELDS = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images", "configurations"}


def documents(path: Path) -> list[dict[str, Any]]:
    """All documents of a file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """All resources of a kustomization, generated ones included."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    assert (kustomization["apiVersion"], kustomization["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    assert kustomization.keys() <= FIELDS
    for file in kustomization.get("configurations", []):
        assert (folder / file).is_file()
    resources = []
    for name in kustomization.get("resources", []):
        path = (folder / name).resolve()
        resources += kustomized(path) if path.is_dir() else documents(path)
    for generated in kustomization.get("configMapGenerator", []):
        data = {Path(file).name: (folder / file).read_text(encoding="utf-8") for file in generated["files"]}
        metadata = {"name": generated["name"]}
        resources.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    if "namespace" in kustomization:
        for resource in resources:
            if resource["kind"] != "Namespace":
                resource["metadata"]["namespace"] = kustomization["namespace"]
    return resources


def only(resources: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one resource of a kind."""
    (found,) = (resource for resource in resources if resource["kind"] == kind)
    return found


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers of a pod's spec."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment(container: dict[str, Any]) -> dict[str, str]:
    """A container's variables."""
    return {variable["name"]: variable["value"] for variable in container.get("env", [])}
