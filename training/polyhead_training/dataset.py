"""``polyhead-dataset``: builds the demo's data set from Debian's package descriptions: section, role and tags.

It reads the machine's own apt sources into a private state folder, so it needs neither root nor the system's lists.
Package names decide the split but are never a field of a row, because a name gives the section away.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from debian.deb822 import Deb822

from polyhead.files import replaced_folder
from polyhead_rows.progress import progress
from polyhead_training.command_line import command_app, one_line_errors
from polyhead_training.errors import DataError
from polyhead_training.from_log import EPILOG, from_log

SPLITS = ("train", "validation", "test")
MIN_SECTION_ROWS = 50  # of the training rows, as for tags
MIN_TAG_ROWS = 200
PACKAGES, DESCRIPTIONS = "*_main_binary-*_Packages", "*_main_i18n_Translation-en"  # names of apt's lists
APT_TIMEOUT_S = 300
OWN_DATA = (
    'to use your own data, run `polyhead-train CONFIG.toml` with data.train = "my.csv", data.text_column and '
    "a [[heads]] table with the column of each label"
)
README = """\
# Debian packages

Texts are package descriptions; `section` (one label), `role` (one label, the first `role::` tag) and `tags` (any
number of labels) come from Debian's package index. A tenth of the packages, by a hash of their name, is
`test.jsonl`, another tenth `validation.jsonl`. `unlabelled.jsonl` has the texts of all other training packages, to
train a language model on. `summary.json` counts rows and labels.
"""


@dataclass(frozen=True)
class DebianSummary:
    """What a built data set holds.

    Attributes:
        rows: rows of each split.
        sections, roles, tags: each label's number of training rows, most frequent first.
    """

    rows: dict[str, int]
    sections: dict[str, int]
    roles: dict[str, int]
    tags: dict[str, int]


@dataclass(frozen=True)
class _Package:
    split: str
    text: str
    section: str
    role: str | None
    tags: list[str]  # all but role:: ones, rare ones too
    is_tagged: bool = True


def build_debian(output: Path, show_progress: bool = False) -> DebianSummary:
    """Writes ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, ``unlabelled.jsonl``, a summary and a README.

    The folder is written in one step and replaces an older data set. apt's lists stay beside it, in ``<output>.apt``,
    so that building again reads only what changed.

    Raises:
        DataError: `output` holds something else; apt is missing, fetched no lists, or its lists have no tags (Debian's
            have them, Ubuntu's do not).
    """
    check_dataset_folder(output)
    lists = _fetch_lists(output.with_name(output.name + ".apt"), show_progress)
    return build_from_lists(lists, output, show_progress=show_progress)


def build_from_lists(lists: Path, output: Path, show_progress: bool = False) -> DebianSummary:
    """Builds from a folder of uncompressed apt lists; see ``build_debian``."""
    everything = _read_packages(lists, show_progress)
    packages = _select([package for package in everything if package.is_tagged])
    if {package.split for package in packages} != set(SPLITS):
        raise DataError(f"{lists}: too few packages with tags in main of the apt sources; {OWN_DATA}")
    training = [package for package in packages if package.split == "train"]
    summary = DebianSummary(
        rows={split: sum(package.split == split for package in packages) for split in SPLITS},
        sections=_counted(package.section for package in training),
        roles=_counted(package.role for package in training if package.role),
        tags=_counted(tag for package in training for tag in package.tags),
    )
    rows: list[tuple[str, dict[str, Any]]] = [
        (package.split, {key: getattr(package, key) for key in ("text", "section", "role", "tags")})
        for package in packages
    ]
    labelled = {package.text for package in packages}
    others = dict.fromkeys(package.text for package in everything if package.split == "train")
    rows += [("unlabelled", {"text": text}) for text in others if text not in labelled]
    write_dataset(output, rows, asdict(summary), README)
    return summary


def plain_text(description: str) -> str:
    """Turns a control file's description into text: one line per paragraph and per list item.

    In the format (Debian Policy 5.6.13) the first line is the synopsis, `` .`` is an empty line, and a line indented by
    two or more spaces must not be wrapped.
    """
    synopsis, *body = description.splitlines()
    lines = [synopsis.strip()]
    joins = False  # whether the next wrapped line continues the previous line
    for line in body:
        content = line.strip()
        if content in ("", "."):
            joins = False
        elif joins and not line.startswith("  "):
            lines[-1] += " " + content
        else:
            lines.append(content)
            joins = not line.startswith("  ")
    return "\n".join(line for line in lines if line)


def _fetch_lists(private: Path, show_progress: bool) -> Path:
    apt = shutil.which("apt-get")
    if apt is None:
        raise DataError(f"the demo's data set needs Debian's apt, and there is no apt-get on this machine; {OWN_DATA}")
    state, cache = private.absolute() / "state", private.absolute() / "cache"
    try:
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{private}: cannot be made ({error})") from error
    options = {
        "Dir::State": state,
        "Dir::Cache": cache,
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
        "APT::Sandbox::User": "root",  # otherwise apt run as root changes to a user who may not write here
    }
    arguments = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    if show_progress:
        print("fetching Debian's package lists", file=sys.stderr)
    try:
        run = subprocess.run(
            [apt, *arguments, "update"],
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=APT_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"apt-get update failed ({error}); {OWN_DATA}") from error
    lists = state / "lists"
    # The exit status is ignored: a source that is down or unsigned does not matter if Debian's lists came.
    if not all(any(lists.glob(pattern)) for pattern in (PACKAGES, DESCRIPTIONS)):
        reason = " ".join(run.stderr.split()) or "no errors"
        raise DataError(f"apt-get update fetched no package lists of main ({reason[:500]}); {OWN_DATA}")
    return lists


def _read_packages(lists: Path, show_progress: bool) -> list[_Package]:
    """Joins index and descriptions. A package in several lists counts once, from the first list that gives it tags."""
    descriptions = {
        paragraph["Description-md5"]: paragraph["Description-en"]
        for paragraph in _paragraphs(lists, DESCRIPTIONS, "reading descriptions", show_progress)
        if "Description-md5" in paragraph and "Description-en" in paragraph
    }
    packages: dict[str, _Package] = {}
    for paragraph in _paragraphs(lists, PACKAGES, "reading packages", show_progress):
        name, description = paragraph["Package"], descriptions.get(paragraph.get("Description-md5", ""))
        if (name in packages and packages[name].is_tagged) or description is None:
            continue
        is_tagged = "Tag" in paragraph and "Section" in paragraph
        tags = list(dict.fromkeys(tag for part in paragraph.get("Tag", "").split(",") if (tag := part.strip())))
        roles = [tag.removeprefix("role::") for tag in tags if tag.startswith("role::")]
        others = [tag for tag in tags if not tag.startswith("role::")]
        if text := plain_text(description):
            role = roles[0] if roles else None
            packages[name] = _Package(split_of(name), text, paragraph.get("Section", ""), role, others, is_tagged)
    return [packages[name] for name in sorted(packages)]


def _paragraphs(lists: Path, pattern: str, title: str, show_progress: bool) -> Iterator[Deb822]:
    fields = ["Package", "Section", "Tag", "Description-md5", "Description-en"]
    for path in sorted(lists.glob(pattern)):
        try:
            size = path.stat().st_size
            with path.open("rb") as file, progress(title, size, unit="bytes", shown=show_progress) as bar:
                for paragraph in Deb822.iter_paragraphs(file, fields=fields, use_apt_pkg=False):
                    bar.advance(file.tell() - bar.done)
                    yield paragraph
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error


def _select(packages: list[_Package]) -> list[_Package]:
    """Keeps rows that have a role and a frequent section; of their tags, it keeps the frequent ones.

    Packages without a role count in the frequency of a section or tag before they are dropped.
    """
    training = [package for package in packages if package.split == "train"]
    sections = _counted((package.section for package in training), MIN_SECTION_ROWS)
    packages = [package for package in packages if package.section in sections]
    training = [package for package in packages if package.split == "train"]
    tags = _counted((tag for package in training for tag in package.tags), MIN_TAG_ROWS)
    roles = {package.role for package in training} - {None}
    return [
        replace(package, tags=[tag for tag in package.tags if tag in tags])
        for package in packages
        if package.role in roles
    ]


def _counted(labels: Iterator[str], at_least: int = 1) -> dict[str, int]:
    return {label: count for label, count in Counter(labels).most_common() if count >= at_least}


def split_of(key: str) -> str:
    """A split by a hash of the key: a tenth each for test and validation, the same in every release of the data."""
    bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def check_dataset_folder(output: Path) -> None:
    """Makes sure that writing a data set to `output` replaces nothing but a data set.

    Raises:
        DataError: something else is there.
    """
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / "summary.json").exists()):
        raise DataError(f"{output}: holds something that is no data set and is not replaced; name another folder")


def write_dataset(
    output: Path, rows: Iterable[tuple[str, Mapping[str, Any]]], summary: Mapping[str, Any], readme: str
) -> None:
    """Writes rows, each into the file of its split, in their order, in one step; an older data set is replaced.

    Raises:
        DataError: it cannot be written, or something else is there.
    """
    check_dataset_folder(output)
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, row in rows:
        lines.setdefault(split, []).append(json.dumps(row, ensure_ascii=False) + "\n")
    try:
        with replaced_folder(output) as fresh:
            for split in lines:
                (fresh / f"{split}.jsonl").write_text("".join(lines[split]), encoding="utf-8")
            (fresh / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            (fresh / "README.md").write_text(readme, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error})") from error


app = command_app("polyhead-dataset")


@app.callback()
def datasets() -> None:
    """Build a data set to train on, or to label."""


@app.command()
def debian(
    output: Annotated[Path, typer.Argument(help="Folder for train.jsonl, validation.jsonl and test.jsonl.")],
) -> None:
    """Build Debian's package descriptions with section, role and tags. Reads them through apt; needs no root."""
    with one_line_errors("polyhead-dataset"):
        summary = build_debian(output, show_progress=True)
    rows = ", ".join(f"{count} {split}" for split, count in summary.rows.items())
    labels = f"{len(summary.sections)} sections, {len(summary.roles)} roles, {len(summary.tags)} tags"
    print(f"{output}: {rows} rows; {labels}")


app.command("from-log", epilog=EPILOG)(from_log)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
