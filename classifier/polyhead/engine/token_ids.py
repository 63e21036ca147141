"""Token sequences as callers give them, checked and turned into arrays in one pass, because a GPU waits meanwhile."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polyhead.body import Body
from polyhead.errors import TokenIdsError

TokenArray = NDArray[np.int32]


def checked(token_ids: Sequence[Sequence[int]], body: Body) -> list[TokenArray]:
    """Each sequence as a part of one array.

    Raises:
        TokenIdsError: names the sequence that the body cannot compute, and what is allowed.
    """
    flat = array("i")
    try:
        for text in token_ids:
            if isinstance(text, array) and text.typecode == "i":
                flat.extend(text)
            else:
                flat.fromlist(text if isinstance(text, list) else list(text))
    except (TypeError, OverflowError):
        _refuse(token_ids, body)
        raise
    ids = np.array(flat, np.int32)
    lengths = np.fromiter(map(len, token_ids), np.int64, len(token_ids))
    if len(lengths) and not (
        lengths.min() >= 1 and lengths.max() <= body.n_positions and ids.min() >= 0 and ids.max() < body.vocab_size
    ):
        _refuse(token_ids, body)
    ends = lengths.cumsum().tolist()
    return [ids[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def distinct_texts(texts: Sequence[TokenArray]) -> tuple[list[TokenArray], list[int]]:
    """Each different sequence once, and the place of each text's sequence among them: equal ones are computed once."""
    distinct: list[TokenArray] = []
    seen: dict[bytes, int] = {}
    places = []
    for ids in texts:
        place = seen.setdefault(ids.tobytes(), len(distinct))
        if place == len(distinct):
            distinct.append(ids)
        places.append(place)
    return distinct, places


def _refuse(token_ids: Sequence[Sequence[int]], body: Body) -> None:
    for position, ids in enumerate(token_ids):
        if not 1 <= len(ids) <= body.n_positions:
            raise TokenIdsError(f"text {position} has {len(ids)} tokens; it must have 1 to {body.n_positions}")
        given = np.asarray(ids)
        if given.dtype.kind not in "iu" or given.ndim != 1:
            raise TokenIdsError(f"text {position}: token ids must be whole numbers, got {given.dtype}")
        if given.min() < 0 or given.max() >= body.vocab_size:
            largest = body.vocab_size - 1
            wrong = next(token for token in ids if not 0 <= token <= largest)
            raise TokenIdsError(f"text {position} has token id {wrong}; ids must lie in 0 to {largest}")
