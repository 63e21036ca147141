"""The Debian data set from handwritten apt lists; no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyhead_training import dataset as debian
from polyhead_training.dataset import build_debian, build_from_lists, plain_text, split_of
from polyhead_training.errors import DataError

TRANSLATION = """\
Package: {name}
Description-md5: {md5}
Description-en: a tool called {md5}
 It wraps
 over lines:
  * first
  * second
 .
 And says more.
"""


def write_lists(folder: Path, packages: list[tuple[str, str, str | None]], suite: str = "bookworm") -> Path:
    """Writes a Packages and a Translation-en list of (name, section, Tag field or None)."""
    folder.mkdir(parents=True, exist_ok=True)
    index, descriptions = [], []
    for name, section, tag in packages:
        lines = [f"Package: {name}", f"Section: {section}", f"Description-md5: md5-{name}"]
        index.append("\n".join(lines + ([f"Tag: {tag}"] if tag is not None else [])) + "\n")
        descriptions.append(TRANSLATION.format(name=name, md5=f"md5-{name}"))
    stem = f"mirror_debian_dists_{suite}_main"
    (folder / f"{stem}_binary-amd64_Packages").write_text("\n".join(index), encoding="utf-8")
    (folder / f"{stem}_i18n_Translation-en").write_text("\n".join(descriptions), encoding="utf-8")
    return folder


def read_rows(output: Path, *splits: str) -> list[dict[str, object]]:
    """Reads the rows of the given splits, or of all."""
    files = [output / f"{split}.jsonl" for split in splits or debian.SPLITS]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a handful of packages pass for a section and a tag."""
    monkeypatch.setattr(debian, "MIN_SECTION_ROWS", 5)
    monkeypatch.setattr(debian, "MIN_TAG_ROWS", 5)


MANY = [(f"pkg{i}", "python", "devel::lang:python, role::program,\n role::data, use::editing") for i in range(60)]


def test_a_row_holds_text_section_role_and_the_other_tags(tmp_path: Path) -> None:
    """The first role:: tag is the role, no role:: stands in tags, later lines count, and no field names the package."""
    build_from_lists(write_lists(tmp_path / "lists", MANY), tmp_path / "out")
    row = read_rows(tmp_path / "out")[0]
    assert list(row) == ["text", "section", "role", "tags"]
    assert (row["section"], row["role"]) == ("python", "program")
    assert row["tags"] == ["devel::lang:python", "use::editing"]


def test_the_split_follows_the_hash_of_the_name(tmp_path: Path) -> None:
    """Each package stands in the split of its name alone, and the summary counts the rows."""
    lists = write_lists(tmp_path / "lists", MANY)
    summary = build_from_lists(lists, tmp_path / "out")
    for split in debian.SPLITS:
        texts = [str(row["text"]) for row in read_rows(tmp_path / "out", split)]
        names = {text.splitlines()[0].removeprefix("a tool called md5-") for text in texts}
        assert names == {name for name, _, _ in MANY if split_of(name) == split}
        assert summary.rows[split] == len(names)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rows"] == summary.rows


def test_rare_sections_tags_and_roleless_packages_are_left_out(tmp_path: Path) -> None:
    """Rows of a rare section, without a role or without tags are dropped; a rare tag leaves an empty list behind."""
    odd = [
        ("rare-section", "zope", "role::program, use::editing"),
        ("no-role", "python", "use::editing"),
        ("no-tags", "python", None),
        ("rare-tag", "python", "role::program, use::dancing"),
    ]
    lists = write_lists(tmp_path / "lists", MANY + odd)
    build_from_lists(lists, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert len(rows) == len(MANY) + 1
    assert [row["tags"] for row in rows if "rare-tag" in str(row["text"])] == [[]]


def test_a_package_in_two_lists_counts_once(tmp_path: Path) -> None:
    """A list without tags, such as the security updates', neither doubles a package nor hides its tags."""
    lists = write_lists(tmp_path / "lists", MANY)
    write_lists(lists, [(name, section, None) for name, section, _ in MANY], suite="a-security")
    write_lists(lists, MANY, suite="b-updates")
    build_from_lists(lists, tmp_path / "out")
    assert len(read_rows(tmp_path / "out")) == len(MANY)


def test_a_description_becomes_paragraphs_and_items() -> None:
    """Wrapped lines are joined, ' .' parts paragraphs, and indented lines stay on their own."""
    text = plain_text("a tool\n It wraps\n over lines:\n  * first\n  * second\n .\n And says\n more.")
    assert text == "a tool\nIt wraps over lines:\n* first\n* second\nAnd says more."


def test_building_again_replaces_the_folder_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """A second build replaces the first as a whole, stray files included."""
    lists = write_lists(tmp_path / "lists", MANY)
    for _ in range(2):
        build_from_lists(lists, tmp_path / "out")
        assert not (tmp_path / "out" / "stray").exists()
        (tmp_path / "out" / "stray").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists", "out"]


def test_lists_without_tags_are_an_error_and_write_nothing(tmp_path: Path) -> None:
    """Where the sources carry no tags, as Ubuntu's, the error says how to use one's own data."""
    lists = write_lists(tmp_path / "lists", [(name, section, None) for name, section, _ in MANY])
    with pytest.raises(DataError, match=r"polyhead-train CONFIG\.toml"):
        build_from_lists(lists, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_apt_the_error_says_how_to_use_ones_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without apt-get gets one line that names apt and the way to a CSV."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"apt.*my\.csv.*\[\[heads\]\]") as caught:
        build_debian(tmp_path / "out")
    assert "\n" not in str(caught.value)


def write_fake_apt(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts an ``apt-get`` in front of PATH; in the script, $state is the private state folder."""
    folder.mkdir()
    find_state = 'for a in "$@"; do case "$a" in Dir::State=*) state="${a#Dir::State=}";; esac; done\n'
    (folder / "apt-get").write_text("#!/bin/sh\n" + find_state + script, encoding="utf-8")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_failing_source_is_tolerated_once_debians_lists_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt's exit status does not matter as long as index and descriptions are there."""
    lists = write_lists(tmp_path / "prepared", MANY)
    write_fake_apt(tmp_path / "bin", f'cp {lists}/* "$state/lists/"\nexit 100\n', monkeypatch)
    summary = build_debian(tmp_path / "data" / "debian")
    assert sum(summary.rows.values()) == len(MANY)


def test_when_no_lists_came_the_error_quotes_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lists the one line carries what apt said."""
    write_fake_apt(tmp_path / "bin", 'echo "E: Could not resolve the mirror" >&2\nexit 100\n', monkeypatch)
    with pytest.raises(DataError, match="Could not resolve the mirror") as caught:
        build_debian(tmp_path / "out")
    assert "\n" not in str(caught.value)
