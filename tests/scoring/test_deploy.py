"""deploy/ray: Ray and KubeRay accept the files, and their commands are valid."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import ray.autoscaler
import typer
import yaml

from polyhead_scoring.command import app

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "ray"


def options_of(command: str) -> dict[str, Any]:
    """What ``polyhead-score`` makes of a command line; fails if it takes none of it."""
    name, *arguments = shlex.split(command)
    assert name == "polyhead-score"
    return dict(typer.main.get_command(app).make_context(name, arguments).params)


def test_the_job_of_kuberay() -> None:
    """It has what the RayJob resource requires, this Ray, and room on each worker for just one of its actors."""
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        assert isinstance(group["rayStartParams"], dict)
        for container in pod["containers"]:
            assert {"name", "image", "resources"} <= container.keys()
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
    command, _, accepted = job["spec"]["entrypoint"].partition(" || ")
    options = options_of(command)
    assert accepted.strip() == "[ $? -eq 1 ]"
    assert options["address"] == "auto"
    worker = cluster["workerGroupSpecs"][0]
    assert {"groupName", "replicas", "minReplicas", "maxReplicas"} <= worker.keys()
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (float(limits["cpu"]), limits["nvidia.com/gpu"]) == (options["cpus_per_actor"], options["gpus_per_actor"])


def test_the_cluster_of_the_launcher() -> None:
    """Ray's own schema takes it, and the command in its comment is one of ours."""
    text = (FOLDER / "launcher.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    command = re.search(r"'(polyhead-score .*?)'", re.sub(r"\n#\s*", " ", text), flags=re.DOTALL)
    assert command is not None
    options = options_of(command[1])
    worker = config["available_node_types"]["gpu"]["resources"]
    assert options["gpus_per_actor"] <= worker["GPU"]
    assert options["cpus_per_actor"] <= worker["CPU"]


def test_the_image_has_this_ray() -> None:
    """Driver and nodes must be of one version."""
    text = (FOLDER / "Containerfile").read_text(encoding="utf-8")
    assert f"ARG BASE=rayproject/ray:{version('ray')}-py311\n" in text
