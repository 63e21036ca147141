"""setup/audit.py over small databases and environments; the allow list and the result in the repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from setup.audit import LEAST_PACKAGES, AuditError, audit, describe, is_permissive, main, vulnerabilities
from tests.test_arrows import ROOT

TODAY = date(2026, 11, 27)
RANGE = """
id: PYSEC-2026-1
aliases: [CVE-2026-1]
details: "Reads files that it should not.\\nMore."
affected:
  - package: {ecosystem: PyPI, name: Some.Package}
    ranges:
      - {type: GIT, events: [{introduced: "0"}, {fixed: 0a1b2c}]}
      - type: ECOSYSTEM
        events: [{introduced: "1.0"}, {fixed: 1.5.2}, {introduced: "2.0"}, {fixed: 2.0.1}]
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database of advisories that is large enough to be one, with one advisory."""
    folder = tmp_path / "advisories"
    for number in range(LEAST_PACKAGES):
        (folder / "vulns" / f"other-{number}").mkdir(parents=True)
    advise(folder, RANGE)
    return folder


def advise(database: Path, record: str, name: str = "PYSEC-2026-1") -> None:
    """Writes an advisory for some-package."""
    folder = database / "vulns" / "some-package"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(record, encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[..., Path]:
    """Makes a checkout with one pin, one installed distribution and an allow list."""

    def make(version: str = "1.5.1", allowed: str = "", licence: str = "MIT", pinned: str | None = None) -> Path:
        root = tmp_path / "checkout"
        (root / "setup").mkdir(parents=True)
        (root / "constraints.txt").write_text(f"some.package=={pinned or version} # why\n")
        (root / "setup" / "audit.toml").write_text(allowed)
        for name in (".venv", ".venv-triton"):
            folder = root / name / "lib" / "python3.11" / "site-packages" / "some_package.dist-info"
            folder.mkdir(parents=True)
            text = f"Metadata-Version: 2.4\nName: Some_Package\nVersion: {version}\nLicense-Expression: {licence}\n"
            (folder / "METADATA").write_text(text)
        return root

    return make


@pytest.mark.parametrize(
    ("version", "covered"),
    [
        ("0.9", False),
        ("1.0", True),
        ("1.5.1", True),
        ("1.5.2rc1", True),
        ("1.5.2", False),
        ("2.0", True),
        ("2.0.1", False),
    ],
)
def test_versions_in_a_range(database: Path, version: str, covered: bool) -> None:
    """A range begins with the version that introduces the fault and ends before the one that fixes it."""
    assert [each.id for each in vulnerabilities(database, "some-package", version)] == ["PYSEC-2026-1"] * covered


@pytest.mark.parametrize(
    ("affected", "covered"),
    [
        ("versions: ['1.5', 'not a version', '1.6']", True),
        ("versions: ['1.6']", False),
        ("ranges: [{type: ECOSYSTEM, events: [{introduced: '0'}, {last_affected: '1.5'}]}]", True),
        ("ranges: [{type: ECOSYSTEM, events: [{introduced: '0'}, {last_affected: '1.4'}]}]", False),
        ("ranges: [{type: ECOSYSTEM, events: [{introduced: '0'}]}]", True),
    ],
)
def test_other_ways_to_name_versions(database: Path, affected: str, covered: bool) -> None:
    """An advisory may list versions, name the last bad one, or know no fix."""
    package = "{ecosystem: PyPI, name: some-package}"
    advise(database, f"id: PYSEC-2026-2\naffected:\n  - package: {package}\n    {affected}\n", "PYSEC-2026-2")
    found = [each.id for each in vulnerabilities(database, "some-package", "1.5.0")]
    assert ("PYSEC-2026-2" in found) == covered


def test_withdrawn_advisories_do_not_count(database: Path) -> None:
    """Their date of withdrawal is enough."""
    advise(database, f"{RANGE}withdrawn: 2026-05-01T00:00:00Z\n")
    assert not list(vulnerabilities(database, "some-package", "1.5.1"))


def test_a_vulnerability_is_left_to_decide(database: Path, checkout: Callable[..., Path]) -> None:
    """The report names package, version, all names of the advisory, and the versions that fix it."""
    report = audit(checkout(), database, TODAY)
    assert report.open == ["some-package 1.5.1: PYSEC-2026-1 CVE-2026-1: fixed in 1.5.2, 2.0.1"]
    assert report.vulnerabilities[0]["summary"] == "Reads files that it should not."


@pytest.mark.parametrize(("reviewed", "count"), [("2026-11-01", 0), ("2026-01-01", 1)])
def test_an_accepted_vulnerability_is_asked_about_again(
    database: Path, checkout: Callable[..., Path], reviewed: str, count: int
) -> None:
    """An entry of the allow list holds for half a year; it may use any name of the advisory."""
    entry = f'package = "some-package"\nid = "CVE-2026-1"\nreason = "not called"\nreviewed = {reviewed}\n'
    report = audit(checkout(allowed=f"[[vulnerability]]\n{entry}"), database, TODAY)
    assert len(report.open) == count
    assert report.vulnerabilities[0]["accepted"] == "not called"


def test_entries_that_nothing_needs_are_errors(database: Path, checkout: Callable[..., Path]) -> None:
    """So the allow list shrinks again when a pin is raised."""
    allowed = """
[[vulnerability]]
package = "some-package"
id = "CVE-2026-1"
reason = "not called"
reviewed = 2026-11-01
[[licence]]
package = "some-package"
licence = "GPL-3.0-only"
reason = "a tool"
reviewed = 2026-11-01
[[bundled]]
package = "some-package"
version = "1.0"
"""
    found = audit(checkout("1.5.2", allowed), database, TODAY).open
    assert len(found) == 3
    assert all(line.startswith("audit.toml: some-package") for line in found)


def test_a_package_without_its_pin_is_found(database: Path, checkout: Callable[..., Path]) -> None:
    """What is installed must be what is pinned, in both environments; a local version like +cpu is the same version."""
    found = audit(checkout("1.6", pinned="1.5.2"), database, TODAY).open
    assert [line.partition(":")[0] for line in found] == [
        "some-package 1.6 in .venv",
        "some-package 1.6 in .venv-triton",
    ]


def test_local_versions_are_their_public_version(database: Path, checkout: Callable[..., Path]) -> None:
    """torch's CPU build has a local version; its advisories count."""
    found = audit(checkout("1.5.1+cpu", pinned="1.5.1"), database, TODAY).open
    assert [line.partition(":")[0] for line in found] == ["some-package 1.5.1"]


@pytest.mark.parametrize(
    ("text", "permissive"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", True),
        ("Apache Software License AND MIT License", True),
        ("GPL-2.0-only OR MIT", True),
        ("Mozilla Public License 2.0 (MPL 2.0)", True),
        ("3-Clause BSD License", True),
        ("MIT AND GPL-3.0-or-later", False),
        ("LGPL-3.0", False),
        ("Mitsubishi proprietary", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_permissive_licences(text: str, permissive: bool) -> None:
    """What is not understood is not permissive."""
    assert is_permissive(text) == permissive


def test_another_licence_is_left_to_decide(database: Path, checkout: Callable[..., Path]) -> None:
    """A person looks at each package whose licence asks for more than a notice."""
    assert audit(checkout("1.5.2", licence="GPL-3.0-only"), database, TODAY).open == [
        "some-package: licence GPL-3.0-only"
    ]


def test_nothing_found_in_a_wrong_folder_is_no_result(
    tmp_path: Path, database: Path, checkout: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without advisories, environments or a date, the audit ends with exit code 2 and writes nothing."""
    root = checkout()
    with pytest.raises(AuditError, match="advisories for 0 packages only"):
        audit(root, tmp_path, TODAY)
    shutil.rmtree(root / ".venv-triton")
    with pytest.raises(AuditError, match="no environment there"):
        audit(root, database, TODAY)
    with pytest.raises(AuditError, match="is not a git clone"):
        describe(tmp_path, TODAY)
    assert main([str(tmp_path), str(tmp_path / "result.json")]) == 2
    assert "audit.py:" in capsys.readouterr().out
    assert not (tmp_path / "result.json").exists()


def test_an_old_database_is_said_to_be_old(database: Path) -> None:
    """Its date is that of its last commit."""
    git = ["git", "-C", str(database), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "advisories", "--date=2026-11-01T12:00:00"],
                   env={"GIT_COMMITTER_DATE": "2026-11-01T12:00:00", "PATH": "/usr/bin:/bin"}, check=True)  # fmt: skip
    assert describe(database, date(2026, 11, 20)).endswith("of 2026-11-01")
    assert describe(database, date(2027, 1, 1)).endswith("of 2026-11-01, 61 days old")


def test_every_accepted_entry_has_a_reason_and_a_day() -> None:
    """The allow list of this repository: no key is missing, none unknown."""
    keys = {
        "vulnerability": {"package", "id", "reason", "reviewed"},
        "licence": {"package", "licence", "reason", "reviewed"},
        "bundled": {"package", "version", "contains", "advisories", "reason", "reviewed"},
    }
    allowed = tomllib.loads((ROOT / "setup" / "audit.toml").read_text(encoding="utf-8"))
    assert set(allowed) <= set(keys)
    for kind, entries in allowed.items():
        for entry in entries:
            assert set(entry) == keys[kind], entry
            assert isinstance(entry["reviewed"], date)
            assert len(entry["reason"]) > 10


def test_the_committed_result_leaves_nothing_open() -> None:
    """docs/audit.json says when it was made, from which advisories, and that each finding is fixed or accepted."""
    result = json.loads((ROOT / "docs" / "audit.json").read_text(encoding="utf-8"))
    assert result["open"] == []
    assert date.fromisoformat(result["date"]) <= date.today()
    assert result["advisories"]
