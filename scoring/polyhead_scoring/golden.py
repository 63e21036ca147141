"""``polyhead-golden``: what a checkpoint answers to your own texts, in the form of its ``golden.jsonl``.

The load test compares with such a file. The engine first checks itself on the golden rows of the checkpoint, which
transformers computed. Then it computes the file in float32. With ``--accept-config`` the command renews the golden rows
of the checkpoint itself instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyhead.decode import are_answers
from polyhead.errors import PolyheadError
from polyhead.files import replaced_file
from polyhead.golden import GoldenRow, complete_rows, row_line
from polyhead.interface import Interface
from polyhead.interrupt import INTERRUPTED, interruptible
from polyhead.terminal import printable
from polyhead_rows.errors import TableError
from polyhead_rows.place import STDIN, find_files, is_pipe
from polyhead_scoring import ScoringError
from polyhead_scoring.texts import TextSource, read_texts

if TYPE_CHECKING:
    from polyhead.predictor import Predictor

CHUNK = 256  # texts in memory at a time

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def write_golden(
    checkpoint: Path, texts: str, out: Path, text_column: str | None = None, most: int | None = None
) -> int:
    """Writes one row per text that the model can answer. Blank texts, and texts without finite scores, are left out.

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
    source = TextSource.of(text_column, Interface.of_checkpoint(checkpoint).fields)
    for name in find_files(texts):
        if name != STDIN and not is_pipe(name):
            next(read_texts(name, source), None)  # a mistake in a first row shows before torch is imported
    from polyhead.predictor import Predictor

    predictor = Predictor.load(checkpoint, precision="fp32")
    predictor.check_golden()
    rows = 0
    with replaced_file(out) as part:
        with part.open("w", encoding="utf-8") as file:
            found = _rows(predictor, islice(read_texts(texts, source), most))
            for row in complete_rows(found, predictor.checkpoint.section, predictor.schema):
                file.write(row_line(row))
                rows += 1
        if not rows:
            raise ScoringError(f"{texts}: has no text that the model can answer")
    return rows


def _rows(predictor: Predictor, texts: Iterator[str]) -> Iterator[GoldenRow]:
    while chunk := list(islice(texts, CHUNK)):
        encoded = predictor.encode(chunk)
        chunk_scores = predictor.score(encoded)
        for text, tokens, scores, has_answer in zip(
            chunk, encoded, chunk_scores, are_answers(chunk_scores), strict=True
        ):
            if tokens.error is None and has_answer:
                numbers = tuple(float(score) for score in scores)
                yield GoldenRow(text=text, scores=numbers, token_count=tokens.token_count, truncated=tokens.truncated)


@app.command(
    epilog="Example: polyhead-golden runs/reviews texts.txt expected.jsonl",
    context_settings={"auto_envvar_prefix": "POLYHEAD_GOLDEN"},
)
def golden(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder that polyhead-train made.")],
    texts: Annotated[
        str | None, typer.Argument(help="A table of texts (.jsonl, .csv, .parquet, …), or .txt: one per line.")
    ] = None,
    out: Annotated[Path | None, typer.Argument(help="The file to write.")] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="The column or field that holds the text. By default the columns of the model's fields if it "
            "has a text template, else text."
        ),
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Only the first texts; all by default.")] = None,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept-config",
            help="Instead: renew the checkpoint's own golden rows, after you changed heads or text_template in its "
            "config.json on purpose. Needs no TEXTS and OUT.",
            allow_from_autoenv=False,
        ),
    ] = False,
) -> None:
    """Write what a checkpoint answers to your own texts, for the load test to compare with."""
    if accept == (texts is not None) or accept == (out is not None):
        raise typer.BadParameter("give TEXTS and OUT, or --accept-config alone")
    out = out or checkpoint / "golden.jsonl"
    try:
        with interruptible():  # else SIGTERM would leave a temporary folder behind
            if texts is None:
                from polyhead_scoring.accepted_config import accept_config  # imports torch

                rows = accept_config(checkpoint)
            else:
                rows = write_golden(checkpoint, texts, out, text_column, most)
    except KeyboardInterrupt:
        typer.echo("polyhead-golden: interrupted; nothing is written", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (PolyheadError, TableError) as error:
        typer.echo(f"polyhead-golden: {printable(str(error))}", err=True)
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
