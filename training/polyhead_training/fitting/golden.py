"""Golden rows: real texts with the scores that transformers computes for each of them alone, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from polyhead.checkpoint import GoldenRow
from polyhead.decode import to_scores
from polyhead.encode import encode
from polyhead.schema import Schema
from polyhead_training.errors import DataError


@torch.inference_mode()
def golden_rows(
    texts: Sequence[str], model: nn.Module, tokenizer: Tokenizer, schema: Schema, max_length: int, rows: int, seed: int
) -> list[GoldenRow]:
    """Scores of at most `rows` texts, drawn at random; one text a forward, so no padding is in play.

    Raises:
        DataError: the tokenizer's normalizer leaves nothing of any text.
    """
    model = model.to("cpu", torch.float32).eval()
    golden: dict[str, GoldenRow] = {}
    for index in np.random.default_rng(seed).permutation(len(texts)):
        if len(golden) == rows:
            break
        text = texts[int(index)]
        (encoded,) = encode([text], tokenizer, max_length)
        if encoded.error or text in golden:
            continue
        logits = model(torch.tensor([encoded.token_ids])).logits.numpy()
        scores = tuple(float(score) for score in to_scores(logits, schema)[0])
        golden[text] = GoldenRow(text=text, scores=scores, token_count=encoded.token_count, truncated=encoded.truncated)
    if not golden:
        raise DataError("golden rows: the tokenizer leaves no token of any text")
    return list(golden.values())
