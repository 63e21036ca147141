"""Audits the Python packages that setup pins and installs: known vulnerabilities, licences, and packages without a pin.

`make audit` calls ``python setup/audit.py ADVISORIES RESULT.json``. ADVISORIES is a clone of pypa/advisory-database.
PyPI and pip-audit take their answers from it. It is read as files because pip-audit asks a server, and skips what the
server does not know: behind a mirror it finds nothing. setup/audit.toml says what is accepted, and why.

Exit code 0: nothing is left to decide. 1: something is. 2: the audit could not be made.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # its types are a package that nothing else needs
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = (".venv", ".venv-triton")
PEERS_ONLY = "requirements-infinity.txt"  # what only a benchmark's peer needs
PIN = re.compile(r"(?<![\w.-])([A-Za-z0-9][\w.-]*)(?:\[[\w,-]+\])?==([\w.!+-]+)")
LEAST_PACKAGES = 300  # the database has advisories for many more; fewer means that the folder is something else
FRESH_DAYS = 45  # an older database is said to be old
RECHECK_DAYS = 180  # an accepted vulnerability is looked at again
PERMISSIVE = re.compile(
    r"(the |new |modified )?\(?(mit|0?bsd|[0-9]-clause bsd|apache|isc|psf|python software foundation|python-2|zlib|cc0|"
    r"unlicense|mpl|mozilla public|hpnd|historical permission|boost|bsl-1|zpl|cnri-python)(?![a-z])"
)


class AuditError(Exception):
    """The audit could not be made."""


@dataclass(frozen=True)
class Vulnerability:
    """An advisory that covers a version."""

    package: str
    version: str
    id: str
    aliases: tuple[str, ...]
    fixed: tuple[str, ...]
    summary: str


@dataclass
class Report:
    """What was looked at, and what it showed. `open` is left to decide: nothing in the allow list covers it."""

    date: str
    advisories: str
    pins: int
    installed: int
    vulnerabilities: list[dict[str, Any]] = field(default_factory=list)
    licences: dict[str, list[str]] = field(default_factory=dict)
    bundled: list[dict[str, Any]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)


def pins(root: Path) -> dict[str, set[str]]:
    """Versions by package: what constraints.txt and the files in setup/ fix, without those of a peer alone."""
    found: dict[str, set[str]] = defaultdict(set)
    files = [root / "constraints.txt", *sorted((root / "setup").glob("*.txt")), *sorted((root / "setup").glob("*.sh"))]
    for path in files:
        if path.name == PEERS_ONLY:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            for name, version in PIN.findall(line.partition("#")[0]):
                found[canonicalize_name(name)].add(version)
    return found


def installed(environment: Path) -> dict[str, Distribution]:
    """The distributions of an environment by name, without ours."""
    folders = [str(folder) for folder in environment.glob("lib/python3*/site-packages")]
    if not folders:
        raise AuditError(f"{environment}: no environment there; make it with make setup")
    found = {canonicalize_name(each.metadata["Name"]): each for each in distributions(path=folders)}
    return {name: each for name, each in found.items() if name.partition("-")[0] != "polyhead"}


def public(distribution: Distribution) -> str:
    """Its version without the local part: torch's 2.13.0+cpu is 2.13.0."""
    return distribution.version.partition("+")[0]


def vulnerabilities(database: Path, package: str, version: str) -> Iterator[Vulnerability]:
    """The advisories that cover this version of a package; those that were withdrawn do not count."""
    for path in sorted((database / "vulns" / package).glob("*.yaml")):
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
        affected = [
            each
            for each in record.get("affected", [])
            if each.get("package", {}).get("ecosystem") == "PyPI"
            and canonicalize_name(each["package"]["name"]) == package
            and covers(each, Version(version))
        ]
        if affected and not record.get("withdrawn"):
            text = (record.get("summary") or record.get("details") or "").strip()
            yield Vulnerability(
                package,
                version,
                str(record["id"]),
                tuple(record.get("aliases", [])),
                tuple(dict.fromkeys(fixed for each in affected for fixed in fixed_in(each))),
                text.splitlines()[0][:120] if text else "",
            )


def covers(affected: dict[str, Any], version: Version) -> bool:
    """Whether an entry of OSV's `affected` covers the version: by its list of versions, or by a range."""
    if any(same(listed, version) for listed in affected.get("versions", [])):
        return True
    for span in affected.get("ranges", []):
        if span.get("type") != "ECOSYSTEM":
            continue  # commits
        inside = False
        for event in span.get("events", []):  # OSV sorts them
            (kind, text), *_ = event.items()
            bound = Version("0") if text == "0" else Version(text)
            if kind == "introduced" and version >= bound:
                inside = True
            elif (kind in {"fixed", "limit"} and version >= bound) or (kind == "last_affected" and version > bound):
                inside = False
        if inside:
            return True
    return False


def same(listed: str, version: Version) -> bool:
    """Whether a listed version, which may be none that Python knows, is this one."""
    try:
        return Version(listed) == version
    except InvalidVersion:
        return False


def fixed_in(affected: dict[str, Any]) -> list[str]:
    """The versions that end the entry's ranges."""
    spans = [span for span in affected.get("ranges", []) if span.get("type") == "ECOSYSTEM"]
    return [event["fixed"] for span in spans for event in span.get("events", []) if "fixed" in event]


def licence(distribution: Distribution) -> str:
    """What the distribution says of its licence; `unknown` if it says nothing."""
    metadata = distribution.metadata
    if expressions := metadata.get_all("License-Expression", []):
        return str(expressions[0])
    classifiers = [
        text.split(" :: ")[-1] for text in metadata.get_all("Classifier", []) if text.startswith("License ::")
    ]
    if named := [text for text in classifiers if text != "OSI Approved"]:
        return " AND ".join(sorted(named))  # some mean OR: the stricter reading is looked at once, in audit.toml
    text = "".join(metadata.get_all("License", [])).strip()
    return text if text and len(text) < 100 and "\n" not in text else "unknown"


def is_permissive(text: str) -> bool:
    """Whether a licence asks for nothing but a notice, or for the source of its own files (MPL).

    Of alternatives one must be permissive, of what holds together all. Text that is not understood is not permissive.
    """
    parts = re.split(r"\s+AND\s+", text)
    return all(any(PERMISSIVE.match(choice.lower()) for choice in re.split(r"\s+OR\s+", part)) for part in parts)


def audit(root: Path, database: Path, today: date) -> Report:
    """Audits the checkout's pins and environments.

    Raises:
        AuditError: there is no database or no environment, so nothing found would mean nothing.
    """
    known = sum(1 for each in (database / "vulns").glob("*") if each.is_dir())
    if known < LEAST_PACKAGES:
        raise AuditError(f"{database}: no clone of pypa/advisory-database: advisories for {known} packages only")
    allowed = tomllib.loads((root / "setup" / "audit.toml").read_text(encoding="utf-8"))
    pinned = pins(root)
    environments = [installed(root / name) for name in ENVIRONMENTS]
    versions = {(name, version) for name, each in pinned.items() for version in each}
    versions |= {(name, public(each)) for environment in environments for name, each in environment.items()}
    report = Report(str(today), "", len(pinned), len({name for environment in environments for name in environment}))
    judge_vulnerabilities(
        report, [each for item in sorted(versions) for each in vulnerabilities(database, *item)], allowed, today
    )
    judge_licences(report, environments, allowed)
    for entry in allowed.get("bundled", []):
        report.bundled.append({key: str(value) for key, value in entry.items()})
        if entry["version"] not in pinned.get(entry["package"], ()):
            report.open.append(
                f"audit.toml: {entry['package']} {entry['version']} is not pinned; look at what it bundles now"
            )
    for environment, name in zip(environments, ENVIRONMENTS, strict=True):
        for package, each in sorted(environment.items()):
            if public(each) not in pinned.get(package, ()):
                report.open.append(
                    f"{package} {each.version} in {name}: has no pin; add it to constraints.txt, or run make setup"
                )
    return report


def judge_vulnerabilities(report: Report, found: list[Vulnerability], allowed: dict[str, Any], today: date) -> None:
    """Puts each vulnerability into the report, and into `open` if nothing accepts it now."""
    entries = {(canonicalize_name(each["package"]), each["id"]): each for each in allowed.get("vulnerability", [])}
    unused = set(entries)
    for each in found:
        names = [(each.package, name) for name in (each.id, *each.aliases)]
        accepted = next((entries[name] for name in names if name in entries), None)
        unused -= set(names)
        report.vulnerabilities.append({**asdict(each), "accepted": str(accepted["reason"]) if accepted else ""})
        what = f"{each.package} {each.version}: {' '.join((each.id, *each.aliases))}"
        if accepted is None:
            report.open.append(f"{what}: fixed in {', '.join(each.fixed) or 'no version'}")
        elif accepted["reviewed"] + timedelta(days=RECHECK_DAYS) < today:
            report.open.append(
                f"{what}: accepted on {accepted['reviewed']}, more than {RECHECK_DAYS} days ago; look again"
            )
    report.open += [
        f"audit.toml: {package} {name} is accepted but not found; remove it" for package, name in sorted(unused)
    ]


def judge_licences(report: Report, environments: list[dict[str, Distribution]], allowed: dict[str, Any]) -> None:
    """Groups the packages by licence, and puts those into `open` that are neither permissive nor accepted."""
    entries = {(canonicalize_name(each["package"]), each["licence"]): each for each in allowed.get("licence", [])}
    unused = set(entries)
    found: dict[str, set[str]] = defaultdict(set)
    for environment in environments:
        for package, each in environment.items():
            found[licence(each)].add(package)
    report.licences = {text: sorted(packages) for text, packages in sorted(found.items())}
    for text, packages in report.licences.items():
        unused -= {(package, text) for package in packages}
        if not is_permissive(text):
            report.open += [f"{each}: licence {text}" for each in packages if (each, text) not in entries]
    report.open += [
        f"audit.toml: {package} with {text} is accepted but not found; remove it" for package, text in sorted(unused)
    ]


def describe(database: Path, today: date) -> str:
    """Commit and date of the database."""
    command = ["git", "-C", str(database), "log", "-1", "--format=%h of %cs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise AuditError(f"{database}: is not a git clone, so its age is unknown")
    text = done.stdout.strip()
    age = (today - date.fromisoformat(text[-10:])).days
    return f"{text}, {age} days old" if age > FRESH_DAYS else text


def show(report: Report, console: Console) -> None:
    """Prints the report for a person."""
    table = Table(title=f"Known vulnerabilities in {report.pins} pinned packages; advisories: {report.advisories}")
    for column in ("package", "version", "advisory", "fixed in", "accepted because"):
        table.add_column(column, overflow="fold")
    for each in report.vulnerabilities:
        names = " ".join((each["id"], *each["aliases"]))
        table.add_row(each["package"], each["version"], names, ", ".join(each["fixed"]), each["accepted"])
    for each in report.bundled:
        table.add_row(each["package"], each["version"], f"{each['contains']}: {each['advisories']}", "", each["reason"])
    console.print(table)
    table = Table(title=f"Licences of {report.installed} installed packages")
    for column in ("licence", "packages"):
        table.add_column(column, overflow="fold")
    for text, packages in report.licences.items():
        table.add_row(text, ", ".join(packages))
    console.print(table)
    for line in report.open:
        console.print(f"open: {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(report.open)} open", highlight=False)


def main(arguments: list[str]) -> int:
    """Audits, prints, and writes the result; returns the exit code."""
    console = Console()
    try:
        database, result = (Path(each) for each in arguments)
        today = datetime.now(UTC).date()
        report = audit(ROOT, database, today)
        report.advisories = describe(database, today)
    except (AuditError, OSError, ValueError) as error:
        console.print(f"audit.py: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    show(report, console)
    result.write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if report.open else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
