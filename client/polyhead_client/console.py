"""What the command reads and prints: standard input, and tables or JSON of answers and explanations."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count, islice
from typing import Any, BinaryIO, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyhead_client.batches import HEADER_BYTES, LONGEST_REQUEST, ROW_BYTES
from polyhead_client.client import Client
from polyhead_client.errors import RequestRejectedError, UsageError
from polyhead_client.explanation import Explanation, PartEffect, Reason, in_words, shorten
from polyhead_client.operations import CANARY
from polyhead_client.prediction import HeadPrediction, MultiLabel, Prediction, Regression, SingleLabel
from polyhead_client.schema import HeadKind, HeadSchema, ModelSchema

BOM = b"\xef\xbb\xbf"
LONGEST_LINE = LONGEST_REQUEST - HEADER_BYTES - ROW_BYTES  # bytes
LINES_PER_STREAM = 50_000  # bad lines wait for the answers before them; this bounds the memory that they need
SHOWN_BYTES = 200  # of a bad line
SHOWN_LABELS = 8  # of a head in the schema's table
SHOWN_SENTENCES = 5
FAINT, STRONG = 0.05, 0.5  # shares of the strongest effect


class Line(NamedTuple):
    """One line of standard input: its text, or the beginning of a line that cannot be sent and the reason."""

    text: str
    error: str | None = None


def read_lines(file: BinaryIO, longest: int = LONGEST_LINE) -> Iterator[Line]:
    """Yields the lines of a file or pipe. Blank lines stay. Of a longer line only `longest` bytes are in memory."""
    for number in count(1):
        line = file.readline(longest + 2)
        if not line:
            return
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            text = text.removeprefix(BOM)
        if len(text) > longest:
            while line and not line.endswith(b"\n"):
                line = file.readline(longest)
            yield Line(_beginning(text), f"line {number} has more than {longest:,} bytes")
            continue
        try:
            yield Line(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield Line(_beginning(text), f"line {number} is not UTF-8: it has byte 0x{text[error.start]:02x}")


def _beginning(line: bytes) -> str:
    return line[:SHOWN_BYTES].decode("utf-8", errors="backslashreplace")


def answer_lines(
    client: Client,
    lines: Iterator[Line],
    batch_size: int,
    workers: int,
    top_k: int | None,
    threshold: float | None,
    reject_below: float | None = None,
    private: bool = False,
) -> Iterator[tuple[str, Prediction]]:
    """Yields each line with its answer, in order. A line that cannot be sent has its reason as the error.

    If the server rejects a batch, its lines are asked one by one, and those that it rejects alone have that as their
    error.

    Raises:
        PolyheadClientError: see `Client.stream`; the lines before it have been yielded.
    """
    unread = deque(islice(lines, 1))  # read again after a refused request
    options: dict[str, Any] = {
        "top_k": top_k, "threshold": threshold, "reject_below": reject_below, "private": private
    }  # fmt: skip
    waiting: deque[Line] = deque()  # read, and not yet yielded

    def texts() -> Iterator[str]:
        for _ in range(LINES_PER_STREAM):
            line = unread.popleft() if unread else next(lines, None)
            if line is None:
                return
            waiting.append(line)
            if line.error is None:
                yield line.text

    while unread:
        try:
            with closing(client.stream(texts(), batch_size, workers, **options)) as stream:
                for prediction in stream:
                    yield from _bad_lines(waiting)
                    yield waiting.popleft().text, prediction
        except RequestRejectedError:
            for _ in range(min(batch_size, len(waiting))):
                line = waiting.popleft()
                alone = Prediction(error=line.error) if line.error else _ask_alone(client, line.text, options)
                yield line.text, alone
            unread.extendleft(reversed(waiting))
            waiting.clear()
        yield from _bad_lines(waiting)
        if not unread:
            unread.extend(islice(lines, 1))


def _bad_lines(waiting: deque[Line]) -> Iterator[tuple[str, Prediction]]:
    while waiting and waiting[0].error is not None:
        line = waiting.popleft()
        yield line.text, Prediction(error=line.error)


def _ask_alone(client: Client, text: str, options: dict[str, Any]) -> Prediction:
    try:
        answer: Prediction = client.classify(text, **options)
        return answer
    except RequestRejectedError as error:
        client.classify(CANARY.decode(), **options)  # raises if the text is not the reason
        return Prediction(error=str(error))


def print_json(answers: Iterable[tuple[str, Prediction]]) -> int:
    """Prints one JSON object per text as its answer comes; returns how many texts have an error."""
    errors = 0
    for text, prediction in answers:
        # ASCII with escapes, which every terminal encoding can print.
        typer.echo(json.dumps({"text": text, **prediction.to_json()}))
        errors += prediction.error is not None
    return errors


def print_table(answers: Iterable[tuple[str, Prediction]]) -> int:
    """Prints one row per text and one column per head, after the last answer; returns how many texts have an error."""
    rows = list(answers)
    heads = list(dict.fromkeys(name for _, prediction in rows for name in prediction.heads))
    errors = sum(prediction.error is not None for _, prediction in rows)
    table = Table(show_lines=any(len(prediction.heads) > 1 for _, prediction in rows))
    for name in ("text", *heads, "tokens", *(["error"] if errors else [])):
        table.add_column(_plain(name), overflow="fold")
    for text, prediction in rows:
        cells = [_plain(shorten(text)), *(_plain(_describe(prediction.heads.get(name))) for name in heads)]
        cells.append(Text(f"{prediction.token_count}{' (truncated)' if prediction.truncated else ''}"))
        if errors:
            cells.append(_plain(prediction.error or "", "red"))
        table.add_row(*cells)
    Console().print(table)
    return errors


def print_schema(schema: ModelSchema, as_json: bool) -> None:
    """Prints one row per head, or one JSON object."""
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(schema), indent=2))
        return
    caption = f"The model reads at most {schema.max_length} tokens of a text."
    table = Table("head", "kind", "labels", "parent", caption=caption)
    for head in schema.heads:
        table.add_row(_plain(head.name), head.kind, _plain(_labels(head)), _plain(head.parent or ""))
    Console().print(table)


def read_text(file: BinaryIO, longest: int = LONGEST_LINE) -> str:
    """The whole of a file or pipe as one text, without the line break at its end.

    Raises:
        UsageError: it is too long or not UTF-8.
    """
    data = file.read(longest + 1).removeprefix(BOM)
    if len(data) > longest:
        raise UsageError(f"standard input has more than {longest:,} bytes")
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8: it has byte 0x{data[error.start]:02x}") from error


def print_explanation(explanation: Explanation, words: int) -> None:
    """Prints a table per reason with its strongest words; on a terminal also the text with these words marked."""
    console = Console()
    for reason in explanation:
        if console.is_terminal:
            console.print(_plain(reason.title, "bold"))
            for field in reason.fields():
                name = _plain("" if field is None else f"{field}: ", "dim")
                console.print(Text.assemble(name, _marked(reason, field)))
        console.print(_effects(reason, "word", reason.strongest(words)))
        if reason.sentences:
            sentences = sorted(reason.sentences, key=lambda one: one.strength, reverse=True)
            console.print(_effects(reason, "sentence", sentences[:SHOWN_SENTENCES]))
    for note in explanation.notes():
        console.print(Text(note), soft_wrap=True)


def _effects(reason: Reason, kind: str, parts: Sequence[PartEffect]) -> Table:
    table = Table(title=_plain(reason.title), title_justify="left", title_style="")
    columns: dict[str, Callable[[PartEffect], str]] = {
        kind: lambda one: shorten(one.text),
        f"without this {kind}": lambda one: in_words(one.effect),
    }
    if any(one.field for one in parts):
        columns = {"field": lambda one: one.field or "", **columns}
    if any(one.effect_everywhere is not None for one in parts):
        columns["without all of them"] = lambda one: (
            "" if one.effect_everywhere is None else f"{one.places} places: {in_words(one.effect_everywhere)}"
        )
    for name in columns:
        table.add_column(name, overflow="fold")
    for part in parts:
        table.add_row(*(_plain(read(part)) for read in columns.values()))
    return table


def _marked(reason: Reason, field: str | None) -> Text:
    """The text with its words in colours: green raises, red and underlined lowers; bold for the strongest."""
    marked = Text()
    for piece in reason.pieces(field):
        style = "" if piece.is_read else "dim"
        if abs(piece.weight) > FAINT:
            style = "green" if piece.weight > 0 else "red underline"
            style += " bold" if abs(piece.weight) > STRONG else ""
        marked.append_text(_plain(piece.text, style))
    return marked


def _labels(head: HeadSchema) -> str:
    if head.kind == HeadKind.REGRESSION:
        return "a number"
    names: Sequence[str] = head.labels
    rejects = "" if head.reject_below is None else f"; none below {head.reject_below:.2f}"
    if head.thresholds is not None:
        names = [f"{label} from {value:.2f}" for label, value in zip(head.labels, head.thresholds, strict=True)]
    more = len(names) - SHOWN_LABELS
    return ", ".join(names[:SHOWN_LABELS]) + (f" and {more} more (--json has all)" if more > 0 else "") + rejects


def _describe(head: HeadPrediction | None) -> str:
    match head:
        case None:
            return ""
        case SingleLabel(chosen, rejected) if rejected:
            return "\n".join(["rejected:", *(f"{one.label} {one.score:.2f}" for one in chosen)])
        case SingleLabel(chosen) | MultiLabel(chosen):
            return "\n".join(f"{one.label} {one.score:.2f}" for one in chosen) or "none"
        case Regression(value):
            return f"{value:.4g}"


def _plain(text: str, style: str = "") -> Text:
    # Texts and labels are data: an escape sequence in them must not reach the terminal.
    shown = (character if character.isprintable() or character == "\n" else "�" for character in text)
    return Text("".join(shown), style)
