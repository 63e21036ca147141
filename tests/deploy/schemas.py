"""Checks resources against the published schemas; unknown fields are errors.

Kubernetes' schemas come from kubernetes-validate. KServe publishes no schema, but Python models that are generated from
one. Their tables of fields become a JSON schema again here, without importing kserve and its server.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parents[2]
KSERVE_MODELS = ROOT / ".operations" / "kserve" / "kserve" / "models"
KUBERNETES = ("1.29", "1.31", "1.33", "1.35", kubernetes_validate.latest_version())
# Where Kubernetes' definitions have the types that KServe's models use.
GROUPS = (
    "io.k8s.api.core.v1",
    "io.k8s.api.apps.v1",
    "io.k8s.api.autoscaling.v2",
    "io.k8s.apimachinery.pkg.apis.meta.v1",
)
PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "object": "object"}


def check_kubernetes(resources: list[dict[str, Any]], version: str) -> None:
    """Raises jsonschema's ValidationError for what this version of Kubernetes would refuse or drop."""
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


def check_kserve(resources: list[dict[str, Any]]) -> None:
    """The same for KServe's resources."""
    registry = Resource.from_contents(kubernetes_types()) @ Registry()
    for resource in resources:
        group, _, version = resource["apiVersion"].partition("/")
        assert group == "serving.kserve.io"
        schema = {"$ref": f"#/$defs/{version.capitalize()}{resource['kind']}", "$defs": kserve_types()}
        jsonschema.Draft202012Validator(schema, registry=registry).validate(resource)


@cache
def kubernetes_types() -> dict[str, Any]:
    """The definitions of the latest Kubernetes."""
    latest = kubernetes_validate.latest_version()
    return dict(schema_contents(f"kubernetes-json-schema/v{latest}-local-strict/_definitions.json", latest))


@cache
def kserve_types() -> dict[str, Any]:
    """KServe's types, and Kubernetes' types under KServe's names for them."""
    if not KSERVE_MODELS.is_dir():
        pytest.fail(f"{KSERVE_MODELS}: missing; run `make test`, which fetches it", pytrace=False)
    files = [path.read_text(encoding="utf-8") for path in sorted(KSERVE_MODELS.glob("v1*.py"))]
    types = {
        node.name: as_schema(node) for text in files for node in ast.parse(text).body if isinstance(node, ast.ClassDef)
    }
    for name in set(re.findall(r"'#/\$defs/(\w+)'", str(types))) - types.keys():
        types[name] = from_kubernetes(re.sub("^V[12]", "", name))
    return types


def from_kubernetes(name: str) -> dict[str, Any]:
    """A type that KServe takes from Kubernetes. Types that neither has (Knative's, in a status) are not allowed."""
    theirs = kubernetes_types()
    for group in GROUPS:
        if f"{group}.{name}" in theirs["$defs"]:
            return {"$ref": f"{theirs['$id']}#/$defs/{group}.{name}"}
    return {"not": {}}


def as_schema(model: ast.ClassDef) -> dict[str, Any]:
    """One generated model: its two tables of fields; a field is required if its constructor always sets it."""
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in model.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    (constructor,) = (node for node in model.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    always = {
        node.targets[0].attr
        for node in constructor.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
    }
    names = tables["attribute_map"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {names[field]: type_schema(kind) for field, kind in tables["openapi_types"].items()},
        # A container's name is not: KServe fills it in.
        "required": [names[field] for field in names if field in always and field != "name"],
    }


def type_schema(kind: str) -> dict[str, Any]:
    """``list[V1EnvVar]``, ``dict(str, str)``, ``str`` or a model's name."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": type_schema(inner[1])}
    if inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": type_schema(inner[1])}
    return {"type": PLAIN[kind]} if kind in PLAIN else {"$ref": f"#/$defs/{kind}"}
