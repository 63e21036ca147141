"""Reads the answer log of a server (docs/answer_log.md): what it answered to which text.

A line that cannot be read is skipped and counted: after a crash, the last line of a file may be incomplete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.identity import checkpoint_id, text_hash
from polyhead.schema import HeadKind, Schema
from polyhead_rows.place import find_files
from polyhead_rows.table_file import ReadOptions, open_table
from polyhead_training.errors import DataError

ALWAYS = frozenset({"time", "model", "version", "checkpoint"})
JSON_LINES = ReadOptions(format="jsonl")


class AnswerLogFiles:
    """The entries of an answer log.

    Attributes:
        unreadable: lines that are no entries, once all are read.
        errors: entries of texts that had no answer.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.names = find_files(patterns)
        self.unreadable = self.errors = 0

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """All entries with an answer, the files in the order of their names, which is that of time."""
        self.unreadable = self.errors = 0
        for name in sorted(self.names):
            if Path(name).is_file() and not Path(name).stat().st_size:
                continue  # its writer was killed before the first line
            with closing(open_table(name, JSON_LINES).rows()) as rows:
                for row in rows:
                    entry = row.fields
                    if entry is None or not entry.keys() >= ALWAYS:
                        self.unreadable += 1
                    elif "error" in entry:
                        self.errors += 1
                    elif isinstance(entry.get("answers"), dict) and isinstance(entry.get("scores"), dict):
                        yield entry
                    else:
                        self.unreadable += 1

    def notes(self) -> list[str]:
        """What a user should know about lines that were not used."""
        found = []
        if self.unreadable:
            found.append(f"{self.unreadable} lines are no whole entries of an answer log and are left out")
        if self.errors:
            found.append(f"{self.errors} logged texts had no answer and are left out")
        return found


class LoggedScores:
    """The scores that a checkpoint gave to texts, by the log of the server that served it.

    Args:
        patterns: of the log's files.
        checkpoint: the folder; answers of other checkpoints are left out.
        texts: the texts that matter, as the model read them.
        key: the server's POLYHEAD_ANSWER_LOG_KEY, if the log has hashes of texts.

    Attributes:
        notes: lines about what was left out.
        described: one sentence about whose answers these are.

    Raises:
        DataError: the log has no answer of this checkpoint to these texts; the message says why.
    """

    def __init__(
        self, patterns: Sequence[str], checkpoint: Path, schema: Schema, texts: Sequence[str], key: str | None
    ) -> None:
        self._schema = schema
        log, own, named = AnswerLogFiles(patterns), checkpoint_id(checkpoint), ", ".join(patterns)
        by_key = {text if key is None else text_hash(text, key.encode()): text for text in texts}
        self._rows: dict[str, NDArray[np.float32]] = {}
        others: Counter[str] = Counter()
        times: list[str] = []
        unknown = hashed = 0
        for entry in log:
            if entry["checkpoint"] != own:
                others[str(entry["checkpoint"])] += 1
                continue
            hashed += "text_hash" in entry
            text = by_key.get(entry.get("text" if key is None else "text_hash", ""))
            if text is None:
                unknown += 1
                continue
            self._rows[text] = self._row(entry)
            times.append(str(entry["time"]))
        if not self._rows:
            raise DataError(f"{named}: {_why_none(unknown, hashed, others, own, key)}")
        self.described = (
            f"The answers are those that the server logged from {min(times)} to {max(times)}; of a text that was "
            "logged several times, the last one."
        )
        self.notes = log.notes()
        if others:
            self.notes.append(f"{others.total()} logged answers are of other checkpoints and are left out")
        if missing := sum(text not in self._rows for text in texts):
            self.notes.append(f"{missing} of {len(texts)} rows have no logged answer and are left out")

    def scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``(n, schema.width)``; a row of NaN for a text that has no logged answer."""
        none = np.full(self._schema.width, np.nan, np.float32)
        return np.stack([self._rows.get(text, none) for text in texts])

    def _row(self, entry: Mapping[str, Any]) -> NDArray[np.float32]:
        row = np.zeros(self._schema.width, np.float32)
        try:
            for head in self._schema:
                columns = self._schema.columns[head.name]
                if head.kind == HeadKind.REGRESSION:
                    row[columns] = entry["answers"][head.name]
                    continue
                found = entry["scores"][head.name]
                places = [columns.start + head.labels.index(label) for label in found]
                if head.kind == HeadKind.SINGLE_LABEL and len(found) < len(head.labels):
                    # Of a large head, only the best labels are logged. The others share what is left.
                    row[columns] = max(1.0 - sum(found.values()), 0.0) / (len(head.labels) - len(found))
                row[places] = list(found.values())
        except (LookupError, TypeError, ValueError) as error:
            raise DataError(f"the entry of {entry['time']} does not fit the checkpoint's heads ({error!r})") from error
        return row


def _why_none(unknown: int, hashed: int, others: Counter[str], own: str, key: str | None) -> str:
    if hashed and key is None:
        return "holds hashes of the texts; --answers-key must be the server's POLYHEAD_ANSWER_LOG_KEY"
    if unknown:
        wrong = "" if key is None else ", or --answers-key is not the server's"
        return f"none of its {unknown:,} answers of this checkpoint is to a text of these rows{wrong}"
    if others:
        named = ", ".join(f"{name} ({count:,})" for name, count in others.most_common(5))
        return f"none of its answers is of this checkpoint ({own}), only of {named}"
    return "holds no answers"
