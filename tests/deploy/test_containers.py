"""deploy/containers, as far as it can be checked without building; `make image-check` builds and runs an image."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath

import pytest

from tests.deploy.manifests import DEPLOY, kustomized, only
from tests.serving.options import parse

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "containers"
SERVERS = ("wheel", "ngc")
ALL = (*(FOLDER / f"{name}.Containerfile" for name in (*SERVERS, "model")), ROOT / "deploy" / "ray" / "Containerfile")

Instructions = list[tuple[str, str]]


def instructions(path: Path) -> Instructions:
    """Name and arguments of each, with continued lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def server(name: str) -> Instructions:
    """Those of a server's image."""
    return instructions(FOLDER / f"{name}.Containerfile")


def of(found: Instructions, name: str) -> list[str]:
    """The arguments of all instructions of one name."""
    return [rest for each, rest in found if each == name]


def copied(found: Instructions) -> list[str]:
    """What comes from the build context."""
    return [place for rest in of(found, "COPY") if not rest.startswith("--from") for place in rest.split()[:-1]]


def hadolint(path: Path) -> str:
    """What the linter finds, empty if nothing."""
    command = [Path(sys.executable).parent / "hadolint", path]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    """The file breaks no rule, except those that it switches off with a reason."""
    assert hadolint(path) == ""


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    """The check above can fail."""
    (tmp_path / "Containerfile").write_text("FROM debian:latest\nUSER root\nRUN cd /tmp\n")
    assert "DL3007" in hadolint(tmp_path / "Containerfile")


@pytest.mark.parametrize("name", SERVERS)
def test_what_is_copied_is_there(name: str) -> None:
    """Each source is tracked by git, and .dockerignore, which excludes everything else, lets it through."""
    first, *rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert first == "*"
    sources = copied(server(name))
    assert sources
    for source in sources:
        tracked = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, text=True, check=True)
        assert tracked.stdout, source
        assert f"!{source}" in rules
    assert "model_repository/*/*/checkpoint" in rules


def places(found: Instructions) -> dict[str, PurePosixPath]:
    """Where each source from the build context is copied to."""
    folder, result = PurePosixPath("/"), {}
    for name, rest in found:
        if name == "WORKDIR":
            folder = PurePosixPath(rest)
        elif name == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                place = folder / target
                result[source] = place / PurePosixPath(source).name if target.endswith("/") else place
    return result


@pytest.mark.parametrize(
    "path", [path for path in ALL if path.stem != "model"], ids=lambda path: path.parent.name + path.stem
)
def test_polyhead_can_be_built_from_what_is_copied(path: Path) -> None:
    """Its wheel includes files from outside its folder. They must be copied to the same place relative to it."""
    project = tomllib.loads((ROOT / "classifier" / "pyproject.toml").read_text(encoding="utf-8"))
    outside = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    found = instructions(path)
    lies = places(found)
    assert lies["constraints.txt"].parent == lies["classifier"].parent
    for source in outside:
        top = source.removeprefix("../").split("/")[0]
        assert lies[top] == lies["classifier"].parent / top
    (install,) = (rest for rest in of(found, "RUN") if "pip install" in rest)
    assert re.search(r"-c \S*constraints\.txt", install)
    assert "--no-cache-dir" in install


def test_the_wheels_image_installs_what_tests_use() -> None:
    """The requirements of .venv-triton, installed from copies instead of links into a checkout."""
    found = server("wheel")
    (install,) = (rest for rest in of(found, "RUN") if "pip install" in rest)
    assert "-r setup/requirements-triton.txt" in install
    assert "sed -i 's/^-e //' setup/requirements-triton.txt" in install
    requirements = (ROOT / "setup" / "requirements-triton.txt").read_text().splitlines()
    links = [line.removeprefix("-e ./").partition("[")[0] for line in requirements if line.startswith("-e ")]
    assert links
    assert set(links) <= set(copied(found))
    assert not [line for line in requirements if line.startswith("-") and not line.startswith("-e ")]


def test_the_gpu_image_installs_the_same_distributions() -> None:
    """Every distribution of ours in the requirements of .venv-triton is installed from its copy, with its extras."""
    found = server("ngc")
    (install,) = (rest for rest in of(found, "RUN") if "pip install" in rest)
    requirements = (ROOT / "setup" / "requirements-triton.txt").read_text().splitlines()
    for link in (line.removeprefix("-e ") for line in requirements if line.startswith("-e ")):
        assert link in install.replace('"', "").split()
        assert link.removeprefix("./").partition("[")[0] in copied(found)


@pytest.mark.parametrize("name", SERVERS)
def test_it_starts_our_command_as_nobody_special(name: str) -> None:
    """The entry point is a console script of ours. The user is a number other than root's, set after the last RUN."""
    found = server(name)
    (command,) = of(found, "ENTRYPOINT")
    assert json.loads(command) == ["polyhead-serve"]
    assert {script.name for script in entry_points(group="console_scripts", name="polyhead-serve")} == {
        "polyhead-serve"
    }
    users = of(found, "USER")
    assert users == ["10001:10001"]
    last = max(position for position, (each, _) in enumerate(found) if each == "RUN")
    assert found.index(("USER", users[0])) > last


@pytest.mark.parametrize("name", SERVERS)
def test_its_health_is_the_canarys(name: str) -> None:
    """The check is valid Python and asks the supervisor's probe port whether real inferences are answered."""
    (check,) = of(server(name), "HEALTHCHECK")
    program = json.loads(check.partition("CMD ")[2])[-1]
    compile(program, "HEALTHCHECK", "exec")
    assert f"127.0.0.1:{parse().probe_port}/ready" in program


@pytest.mark.parametrize("name", SERVERS)
def test_its_variables_are_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """polyhead-serve reads the variables that the image sets."""
    (environment,) = of(server(name), "ENV")
    variables = re.findall(r"(POLYHEAD_\w+)=(\S+)", environment)
    for variable in variables:
        monkeypatch.setenv(*variable)
    assert {variable for variable, _ in variables} <= {f"POLYHEAD_SERVE_{option}".upper() for option in vars(parse())}
    assert parse().repository == Path("/model_repository")


def test_the_gpu_image_needs_a_gpu() -> None:
    """It says that it wants one, so that it does not serve from the CPU, unseen and slowly, where it finds none."""
    assert "POLYHEAD_SERVE_DEVICE=cuda" in of(server("ngc"), "ENV")[0].split()
    assert "POLYHEAD_SERVE_DEVICE" not in of(server("wheel"), "ENV")[0]


def test_the_wheels_image_has_no_compiler() -> None:
    """Its last stage contains nothing that builds software."""
    found = server("wheel")
    last = max(position for position, (each, _) in enumerate(found) if each == "FROM")
    installed = " ".join(rest for each, rest in found[last:] if each == "RUN")
    assert "libpython3.11" in installed
    assert not re.search(r"\b(gcc|g\+\+|make|build-essential|python3\S*-dev|pip)\b", installed)


def test_the_models_image_fills_the_pods_volume() -> None:
    """It copies its repository to where the init container of deploy/kubernetes mounts the volume."""
    found = instructions(FOLDER / "model.Containerfile")
    owner, source, target = of(found, "COPY")[0].split()
    assert owner == f"--chown={of(found, 'USER')[0]}"  # files that only their owner may read
    assert source == "."
    (command,) = of(found, "CMD")
    pod = only(kustomized(DEPLOY / "kubernetes"), "Deployment")["spec"]["template"]["spec"]
    (mount,) = pod["initContainers"][0]["volumeMounts"]
    assert json.loads(command)[-2:] == [f"{target}/.", f"{mount['mountPath']}/"]


def test_the_images_check_is_a_sound_script() -> None:
    """bash can parse deploy/containers/check.sh, and without a repository it explains its usage."""
    script = FOLDER / "check.sh"
    subprocess.run(["bash", "-n", script], check=True)
    ended = subprocess.run([script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "usage: deploy/containers/check.sh REPOSITORY" in ended.stderr
