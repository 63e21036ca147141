"""deploy/containers: what can be told of the files without an engine; `make image-check` builds one for real."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath

import pytest

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
def test_hadolint_is_content(path: Path) -> None:
    """No rule of it is broken but those that the file sets aside with a reason."""
    assert hadolint(path) == ""


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    """The check above can fail."""
    (tmp_path / "Containerfile").write_text("FROM debian:latest\nUSER root\nRUN cd /tmp\n")
    assert "DL3007" in hadolint(tmp_path / "Containerfile")


@pytest.mark.parametrize("name", SERVERS)
def test_what_is_copied_is_there(name: str) -> None:
    """Each file is tracked by git and let through by .dockerignore, which starts from nothing."""
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
    """Where each thing from the build context comes to lie."""
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
    """Its wheel takes files from outside its folder along, which must stand beside it as they do here."""
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
    """The requirements of .venv-triton, from copies instead of links into a checkout."""
    found = server("wheel")
    (install,) = (rest for rest in of(found, "RUN") if "pip install" in rest)
    assert "-r setup/requirements-triton.txt" in install
    assert "sed -i 's/^-e //' setup/requirements-triton.txt" in install
    requirements = (ROOT / "setup" / "requirements-triton.txt").read_text().splitlines()
    links = [line.removeprefix("-e ").partition("[")[0] for line in requirements if line.startswith("-e ")]
    assert links == ["./classifier"]
    assert not [line for line in requirements if line.startswith("-") and not line.startswith("-e ")]


@pytest.mark.parametrize("name", SERVERS)
def test_it_starts_our_command_as_nobody_special(name: str) -> None:
    """The entry point is a console script of ours; the user is a number that is not root's, and stays the last one."""
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
    """The check asks the supervisor whether real inferences are answered, with a program that Python takes."""
    (check,) = of(server(name), "HEALTHCHECK")
    program = json.loads(check.partition("CMD ")[2])[-1]
    compile(program, "HEALTHCHECK", "exec")
    assert "127.0.0.1:8003/ready" in program


def test_the_wheels_image_has_no_compiler() -> None:
    """Nothing that builds software stands in its last stage."""
    found = server("wheel")
    last = max(position for position, (each, _) in enumerate(found) if each == "FROM")
    installed = " ".join(rest for each, rest in found[last:] if each == "RUN")
    assert "libpython3.11" in installed
    assert not re.search(r"\b(gcc|g\+\+|make|build-essential|python3\S*-dev|pip)\b", installed)


def test_the_base_of_gpus_and_what_is_said_of_it() -> None:
    """NVIDIA's container of a version that has NumPy 2, and a word that nobody has built it here."""
    (base,) = of(server("ngc"), "FROM")
    assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:25\.\d\d-py3", base)
    assert "nobody has built it" in (FOLDER / "ngc.Containerfile").read_text(encoding="utf-8")
    (install,) = (rest for rest in of(server("ngc"), "RUN") if "pip install" in rest)
    assert '"numpy>=2"' in install


def test_a_model_is_copied_where_the_pod_looks() -> None:
    """The model's image copies its repository to /target, by default and in Kubernetes alike."""
    found = instructions(FOLDER / "model.Containerfile")
    assert of(found, "COPY") == [". /model_repository"]
    (command,) = of(found, "CMD")
    assert json.loads(command) == ["cp", "-R", "/model_repository/.", "/target/"]
    assert of(found, "USER") == ["10001:10001"]


def test_the_images_check_is_a_sound_script() -> None:
    """bash reads deploy/containers/check.sh, and without a repository it says how to call it."""
    script = FOLDER / "check.sh"
    subprocess.run(["bash", "-n", script], check=True)
    ended = subprocess.run([script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "usage: deploy/containers/check.sh REPOSITORY" in ended.stderr
