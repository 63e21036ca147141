"""``polyhead-golden``: what a checkpoint answers to your own texts, in the form of its ``golden.jsonl``.

The load test compares with such a file. The engine first checks itself on the golden rows of the checkpoint, which
transformers computed. Then it computes the file in float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from polyhead.checkpoint import GoldenRow
from polyhead.errors import PolyheadError
from polyhead.files import replaced_file
from polyhead.interrupt import INTERRUPTED, interruptible
from polyhead.predictor import Predictor
from polyhead_rows.errors import TableError
from polyhead_scoring import ScoringError
from polyhead_scoring.texts import TextSource, read_texts

CHUNK = 256  # texts in memory at a time

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def write_golden(
    checkpoint: Path, texts: str, out: Path, text_column: str | None = None, most: int | None = None
) -> int:
    """Writes one row per text that the model can answer; blank texts are left out.

    Args:
        checkpoint: the folder.
        texts: files, as for `polyhead_rows.table_file.read_texts`; ``.txt`` has one text per line.
        out: the file to write. It is replaced only when everything is written.
        text_column: of the files. None reads the columns of the model's fields or, if it has none, ``text``.
            Fields are kept as JSON objects, so that a server renders them too.
        most: use only the first texts, this many; None uses all.

    Returns:
        The number of rows.

    Raises:
        CheckpointError, ToleranceError: the checkpoint is damaged, or the engine contradicts its golden rows.
        TableError: a row has no text, or a file cannot be read.
        ScoringError: there is no text at all.
    """
    predictor = Predictor.load(checkpoint, precision="fp32")
    predictor.check_golden()
    template = predictor.template
    source = TextSource.of(text_column, () if template is None else template.fields)
    rows = 0
    with replaced_file(out) as part:
        with part.open("w", encoding="utf-8") as file:
            for row in _rows(predictor, islice(read_texts(texts, source), most)):
                file.write(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n")
                rows += 1
        if not rows:
            raise ScoringError(f"{texts}: has no text that the model can answer")
    return rows


def _rows(predictor: Predictor, texts: Iterator[str]) -> Iterator[GoldenRow]:
    while chunk := list(islice(texts, CHUNK)):
        encoded = predictor.encode(chunk)
        for text, tokens, scores in zip(chunk, encoded, predictor.score(encoded), strict=True):
            if tokens.error is None:
                numbers = tuple(float(score) for score in scores)
                yield GoldenRow(text=text, scores=numbers, token_count=tokens.token_count, truncated=tokens.truncated)


@app.command(
    epilog="Example: polyhead-golden runs/reviews texts.txt expected.jsonl",
    context_settings={"auto_envvar_prefix": "POLYHEAD_GOLDEN"},
)
def golden(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder that polyhead-train made.")],
    texts: Annotated[str, typer.Argument(help="A table of texts (.jsonl, .csv, .parquet, …), or .txt: one per line.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    text_column: Annotated[
        str | None,
        typer.Option(
            help="The column or field that holds the text. By default the columns of the model's fields if it "
            "has a text template, else text."
        ),
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Only the first texts; all by default.")] = None,
) -> None:
    """Write what a checkpoint answers to your own texts, for the load test to compare with."""
    try:
        with interruptible():  # else SIGTERM would leave a temporary folder behind
            rows = write_golden(checkpoint, texts, out, text_column, most)
    except KeyboardInterrupt:
        typer.echo("polyhead-golden: interrupted; nothing is written", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (PolyheadError, TableError) as error:
        typer.echo(f"polyhead-golden: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:  # its own names are those of temporary files
        typer.echo(f"polyhead-golden: {out}: cannot be written ({error.strerror or error})", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"wrote {out}: {rows} texts with their scores")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
