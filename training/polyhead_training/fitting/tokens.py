"""Token rows: a split as the Trainer reads it, tokenized once and memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from polyhead.encode import encode
from polyhead_training.data.corpus import Split
from polyhead_training.errors import DataError


@dataclass(frozen=True)
class TokenRows:
    """A tokenized split.

    Attributes:
        rows: with columns ``input_ids``, ``labels`` and ``length`` (after truncation).
        lengths: of the texts as they are, in tokens.
        max_length: what is read of each.
    """

    rows: datasets.Dataset
    lengths: NDArray[np.int64]
    max_length: int

    @property
    def left_out(self) -> int:
        """How many texts have no token, and so no row."""
        return int((self.lengths == 0).sum())

    @property
    def truncated(self) -> int:
        """How many texts are longer than `max_length`."""
        return int((self.lengths > self.max_length).sum())

    @property
    def read(self) -> int:
        """How many tokens the model reads of all texts."""
        return int(np.minimum(self.lengths, self.max_length).sum())


def check_tokens(split: Split, tokenizer: Tokenizer, name: str) -> None:
    """Makes sure that a text of the split has a token.

    Raises:
        DataError: none has, since the tokenizer's normalizer leaves nothing of them.
    """
    for batch in split.rows.select_columns(["text"]).iter(1000):
        if any(encoded.token_count for encoded in encode(batch["text"], tokenizer, max_length=1)):
            return
    raise DataError(f"data.text_transforms: leave no token of any text of the {name} split")


def tokenize(split: Split, tokenizer: Tokenizer, max_length: int, scratch: Path, name: str) -> TokenRows:
    """Tokenizes a split into a file of `scratch`; texts without a token are left out, as serving cannot answer them."""
    lengths: list[int] = []

    def tokens(texts: list[str]) -> dict[str, Any]:
        # Encoded whole: how long texts are is worth knowing, and cutting costs nothing.
        whole = [text.token_ids for text in encode(texts, tokenizer, max_length=2**31)]
        lengths.extend(len(ids) for ids in whole)
        ids = [ids[:max_length] for ids in whole]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    rows = split.rows.map(
        tokens,
        batched=True,
        input_columns=["text"],
        remove_columns=[column for column in split.rows.column_names if column != "labels"],
        cache_file_name=str(scratch / f"{name}.arrow"),
        load_from_cache_file=False,
        new_fingerprint=name,  # else the library would pickle the tokenizer to name the file
    )
    counts = np.array(lengths)
    if not counts.all():  # what is left of a text by the tokenizer's normalizer may be nothing
        rows = rows.select(np.flatnonzero(counts))
    return TokenRows(rows, counts, max_length)
