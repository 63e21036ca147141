"""A model's config.pbtxt: the two lines that choose its version, ``version_policy`` and ``label_filename``.

Replacing this one file is what makes a version the served one, so labels and version change in the same instant. All
other lines stay as their author wrote them. `for_gpu` makes the template into that of a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polyhead.errors import RepositoryError

TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[^\s]""")
OPENING, CLOSING = "{<[", "}>]"
# Of the template, and for a GPU. It is faster with more texts at once. A second instance computes while the first reads
# requests and writes answers. If `execute` does not wait for answers, it tokenizes the next texts meanwhile.
GPU_VALUES = {
    "max_batch_size: 64\n": "max_batch_size: 256\n",
    "count: 1\n": "count: 2\n",
    'key: "at_once_s" value { string_value: "0.1" }': 'key: "at_once_s" value { string_value: "0.002" }',
}
OWN_LABELS = re.compile(r"""["'](?:[0-9]+/)?labels\.txt["']""")


@dataclass(frozen=True)
class _Token:
    text: str
    start: int
    end: int
    depth: int


class ConfigPbtxt:
    """The text of a config.pbtxt.

    Args:
        place: names the file in errors.

    Attributes:
        text: as it was given.
        specific: the versions that it names, or None.
        latest: how many of the highest versions it serves, or None.

    Raises:
        RepositoryError: braces do not match, or it has several version policies.
    """

    def __init__(self, text: str, place: str = "config.pbtxt") -> None:
        self.text = text
        self._place = place
        self._tokens = list(_tokens(text, place))
        self._policy = self._find_policy()
        self.specific: tuple[int, ...] | None = None
        self.latest: int | None = 1 if self._policy is None else None
        if self._policy is not None:
            self._read_policy()

    def served(self, present: Sequence[int]) -> list[int]:
        """The versions that Triton serves, of those in the model's folder (ascending), or that it would look for."""
        if self.specific is not None:
            return sorted(self.specific)
        return list(present if self.latest is None else present[-self.latest :])

    def pinned_to(self, version: int) -> str:
        """The text that serves this version with its own labels.

        Raises:
            RepositoryError: its author serves several versions.
        """
        if self.latest != 1 and (self.specific is None or len(self.specific) != 1):
            raise RepositoryError(
                f"{self._place}: version_policy serves several versions, but exports and deployments replace one by "
                "the next; write `version_policy { latest { num_versions: 1 } }`"
            )
        policy = f"version_policy {{ specific {{ versions: [ {version} ] }} }}"
        edits = [(self._tokens[at].start, self._tokens[at].end, f'"{version}/labels.txt"') for at in self._labels()]
        if self._policy is not None:
            first, last = self._policy
            edits.append((self._tokens[first].start, self._tokens[last].end, policy))
        text = self.text
        for start, end, replacement in sorted(edits, reverse=True):
            text = text[:start] + replacement + text[end:]
        return text if self._policy is not None else f"{text.rstrip()}\n{policy}\n".lstrip()

    def _labels(self) -> Iterator[int]:
        for at, token in enumerate(self._tokens):
            if token.text == "label_filename":
                value = at + 2 if self._text(at + 1) == ":" else at + 1
                if OWN_LABELS.fullmatch(self._text(value)):
                    yield value

    def _find_policy(self) -> tuple[int, int] | None:
        found = [at for at, token in enumerate(self._tokens) if token.depth == 0 and token.text == "version_policy"]
        if not found:
            return None
        if len(found) > 1:
            raise RepositoryError(f"{self._place}: version_policy occurs twice")
        start = found[0] + (2 if self._text(found[0] + 1) == ":" else 1)
        ends = (at for at in range(start + 1, len(self._tokens)) if self._tokens[at].depth == 0)
        if self._text(start) not in ("{", "<") or (end := next(ends, None)) is None:
            raise RepositoryError(f"{self._place}: version_policy cannot be read")
        return found[0], end

    def _read_policy(self) -> None:
        assert self._policy is not None
        first, last = self._policy
        inside = "".join(token.text for token in self._tokens[first + 1 : last + 1]).translate(
            str.maketrans("<>;", "{},", ":")
        )
        if match := re.fullmatch(r"\{latest\{num_versions([0-9]+),?\},?\}", inside):
            self.latest = int(match[1])
        elif re.search(r"\b0[0-9]", " ".join(token.text for token in self._tokens[first : last + 1])):
            raise RepositoryError(
                f"{self._place}: version_policy has a number with a leading 0, which Triton reads as octal"
            )
        elif match := re.fullmatch(r"\{specific\{((?:versions(?:\[[0-9,]*\]|[0-9]+),?)*)\},?\}", inside):
            self.specific = tuple(int(number) for number in re.findall(r"[0-9]+", match[1]))
        elif not re.fullmatch(r"\{all\{\},?\}", inside):
            raise RepositoryError(f"{self._place}: version_policy {inside} is not understood")

    def _text(self, at: int) -> str:
        return self._tokens[at].text if at < len(self._tokens) else ""


def for_gpu(template: str) -> str:
    """The template's text with the values of `GPU_VALUES`.

    Raises:
        RepositoryError: it has other values.
    """
    for cpu, gpu in GPU_VALUES.items():
        if template.count(cpu) != 1:
            raise RepositoryError(f"{cpu.strip()!r} is not once in the template, so it cannot be made for a GPU")
        template = template.replace(cpu, gpu)
    return template


def _tokens(text: str, place: str) -> Iterator[_Token]:
    depth = 0
    for match in TOKEN.finditer(text):
        token = match.group()
        if token.startswith("#"):
            continue
        depth -= token in CLOSING
        if depth < 0:
            break
        yield _Token(token, match.start(), match.end(), depth)
        depth += token in OPENING
    if depth != 0:
        raise RepositoryError(f"{place}: braces do not match")
