"""``polyhead-golden``: what a checkpoint says of texts of your own, in the form of its ``golden.jsonl``.

The load test compares with such a file. It is computed in float32 by the engine, which first has to prove itself on the
checkpoint's own golden rows, computed by transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from polyhead.checkpoint import GoldenRow
from polyhead.errors import PolyheadError
from polyhead.predictor import Predictor

CHUNK = 256  # texts in memory at a time


def write_golden(checkpoint: Path, texts: Path, out: Path, field: str = "text", most: int | None = None) -> int:
    """Writes a row for each text that the model can answer; blank ones are left out.

    Args:
        checkpoint: the folder.
        texts: JSON lines with the text in `field` where the name ends in ``.jsonl``, else a text a line.
        out: is replaced when all is written, not before.
        field: of JSON lines.
        most: only so many of the first texts; all if None.

    Returns:
        The number of rows.

    Raises:
        CheckpointError, ToleranceError: the checkpoint is damaged, or the engine contradicts its golden rows.
        PolyheadError: a line has no text, or there is none at all.
    """
    predictor = Predictor.load(checkpoint, precision="fp32")
    predictor.check_golden()
    rows = 0
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".golden-") as folder:
            part = Path(folder) / out.name
            with part.open("w", encoding="utf-8") as file:
                for row in _rows(predictor, islice(read_texts(texts, field), most)):
                    file.write(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n")
                    rows += 1
            if not rows:
                raise PolyheadError(f"{texts}: has no text that the model can answer")
            os.replace(part, out)
    except OSError as error:
        raise PolyheadError(f"{error.filename or out}: {error.strerror}") from error
    return rows


def read_texts(path: Path, field: str) -> Iterator[str]:
    """The texts of a file, one at a time.

    Raises:
        PolyheadError: a line is not UTF-8 or, of JSON lines, has no text in `field`.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
                if path.suffix == ".jsonl":
                    text = json.loads(text)[field]
            except (ValueError, LookupError, TypeError) as error:
                raise PolyheadError(f"{path}:{number}: has no text ({type(error).__name__}: {error})") from error
            if not isinstance(text, str):
                raise PolyheadError(f"{path}:{number}: {field} must be a string, got {type(text).__name__}")
            yield text


def _rows(predictor: Predictor, texts: Iterator[str]) -> Iterator[GoldenRow]:
    while chunk := list(islice(texts, CHUNK)):
        encoded = predictor.encode(chunk)
        for text, tokens, scores in zip(chunk, encoded, predictor.score(encoded), strict=True):
            if tokens.error is None:
                numbers = tuple(float(score) for score in scores)
                yield GoldenRow(text=text, scores=numbers, token_count=tokens.token_count, truncated=tokens.truncated)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="polyhead-golden",
        description="Write what a checkpoint says of your own texts, for the load test to compare with.",
        epilog="example: polyhead-golden runs/reviews texts.txt expected.jsonl",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder made by polyhead-train")
    parser.add_argument("texts", type=Path, help="JSON lines (.jsonl) or a file with a text a line")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--field", default="text", help="of JSON lines (default: %(default)s)")
    parser.add_argument("--most", type=_count, metavar="N", help="only the first N texts (default: all)")
    arguments = parser.parse_args(argv)
    try:
        rows = write_golden(arguments.checkpoint, arguments.texts, arguments.out, arguments.field, arguments.most)
    except PolyheadError as error:
        print(f"polyhead-golden: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.out}: {rows} texts with their scores")
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
