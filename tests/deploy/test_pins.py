"""Everything that is downloaded has a version and comes from one place: Python packages, base images, manifests."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

from setup.audit import pins
from tests.deploy.manifests import DEPLOY
from tests.deploy.test_containers import ALL, instructions, of
from tests.test_arrows import ROOT

SETUP = ROOT / "setup"
REQUIREMENTS = sorted(SETUP.glob("requirements*.txt"))
EXACT = re.compile(r"[\w.-]+(\[[\w,-]+\])?==[\w.!+-]+")
PIP = re.compile(r"pip\"?\s+(install|download)\b")
OURS = {tomllib.loads(path.read_text(encoding="utf-8"))["project"]["name"] for path in ROOT.glob("*/pyproject.toml")}


def lines(path: Path) -> list[str]:
    """What the file requires."""
    found = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in found if line]


def test_constraints_are_exact() -> None:
    """Each line fixes one version, and no package stands there twice."""
    found = lines(ROOT / "constraints.txt")
    assert [line for line in found if not EXACT.fullmatch(line)] == []
    names = [line.partition("==")[0].lower().replace("_", "-") for line in found]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_are_pinned(path: Path) -> None:
    """A requirement has its version here or in constraints.txt, or is a folder of this checkout."""
    pinned = pins(ROOT)
    for line in lines(path):
        if line.startswith("-"):
            assert re.fullmatch(r"-e \./\w+(\[[\w,]+\])?|-r requirements\.txt", line), line
        else:
            assert EXACT.fullmatch(line) or canonicalize_name(line.partition("[")[0]) in pinned, line


def pip_installs() -> Iterator[tuple[str, str]]:
    """Each call of pip that installs or downloads, in the scripts of setup/ and in the container files."""
    for path in sorted(SETUP.glob("*.sh")):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        yield from ((path.name, line) for line in text.splitlines() if PIP.search(line))
    for path in ALL:
        for rest in of(instructions(path), "RUN"):
            yield from ((path.name, part) for part in rest.split("&&") if PIP.search(part))


@pytest.mark.parametrize(("place", "command"), list(pip_installs()))
def test_pip_takes_pinned_versions(place: str, command: str) -> None:
    """pip is constrained, or offline, or gets files by their hash. What builds our own packages is constrained too."""
    assert re.search(r"-c \S+|--no-index|--require-hashes", command), place
    builds = re.search(r"\./classifier|/tmp/classifier|-r setup/|\$\{arguments", command)
    assert not builds or "--build-constraint" in command, place


@pytest.mark.parametrize(("place", "command"), list(pip_installs()))
def test_pip_asks_one_index(place: str, command: str) -> None:
    """With a second index, whoever publishes there can take over any name."""
    assert "--extra-index-url" not in command, place
    assert "--index-url" not in command or "--no-deps" in command, place


def test_images_have_numpys_pin() -> None:
    """The images that have NumPy 2 have the version with which the tests run."""
    (pin,) = (line for line in lines(SETUP / "requirements.txt") if line.startswith("numpy=="))
    for path in ALL:
        for rest in of(instructions(path), "RUN"):
            assert re.findall(r"numpy\S*", rest) in ([], [pin]), path.name


def images() -> Iterator[tuple[str, str]]:
    """Every image that a container file begins with or a manifest names."""
    for path in ALL:
        found = instructions(path)
        defaults = dict(rest.split("=", 1) for rest in of(found, "ARG"))
        for rest in of(found, "FROM"):
            yield path.name, defaults.get(rest.split()[0].strip("${}"), rest.split()[0])
    for path in sorted(DEPLOY.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield from ((path.name, image) for image in named(document))


def named(node: object) -> Iterator[str]:
    """The images in a manifest."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "image" and isinstance(value, str))
        yield from (image for value in node.values() for image in named(value))
    elif isinstance(node, list):
        yield from (image for value in node for image in named(value))


@pytest.mark.parametrize(("place", "image"), list(images()))
def test_images_have_a_version(place: str, image: str) -> None:
    """No image floats: each has a tag with a number, or a digest."""
    name, _, tag = image.rpartition("@" if "@" in image else ":")
    assert name, place
    assert re.search(r"\d", tag), place
    assert tag != "latest", place


def test_the_gpu_images_triton_has_all_known_fixes() -> None:
    """NVIDIA's newest bulletin on Triton that is known here, 5875 of 2026, asks for 26.07 or later."""
    (base,) = (image for place, image in images() if place == "ngc.Containerfile")
    year, month = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d\d)\.(\d\d)-py3", base).groups()
    assert (int(year), int(month)) >= (26, 7)


def test_guides_install_our_packages_from_the_checkout() -> None:
    """None of our names is on PyPI, where anyone may take it: no guide and no message installs one of them by name."""
    command = ["git", "ls-files", "*.md", "*.py", "*.ipynb", "deploy", "setup", "Makefile"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        text = (ROOT / name).read_text(encoding="utf-8")
        for install in re.findall(r"pip install [^\n`]*", text):
            words = {word.strip("'\"").partition("[")[0].partition("=")[0] for word in install.split()}
            assert not words & OURS, f"{name}: {install}"


def test_debian_packages_are_verified() -> None:
    """No script switches off apt's or debootstrap's signatures; debootstrap would go on without a keyring."""
    scripts = [*SETUP.glob("*.sh"), DEPLOY / "containers" / "check.sh"]
    for path in [*scripts, *ALL]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"allow-?(insecure|unauthenticated|downgrade)|no-check-gpg|trusted=yes", text, re.IGNORECASE
        )
        for line in text.splitlines():
            if re.match(r"\s*debootstrap ", line):
                assert "--force-check-gpg" in line
