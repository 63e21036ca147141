"""Golden rows: real texts with the scores that transformers computes for each of them alone, in float32."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import nn

from polyhead.checkpoint import Golden
from polyhead.decode import to_scores
from polyhead.encode import encode
from polyhead.schema import Schema


@torch.inference_mode()
def golden_rows(
    texts: Sequence[str], model: nn.Module, tokenizer: Tokenizer, schema: Schema, max_length: int, rows: int, seed: int
) -> list[Golden]:
    """Scores of at most `rows` texts, drawn at random; one text a forward, so no padding is in play."""
    drawn = random.Random(seed).sample(list(dict.fromkeys(texts)), min(rows, len(set(texts))))
    model = model.to("cpu", torch.float32).eval()
    golden = []
    for text, encoded in zip(drawn, encode(drawn, tokenizer, max_length), strict=True):
        logits = model(torch.tensor([encoded.token_ids])).logits.numpy()
        scores = tuple(float(score) for score in to_scores(logits, schema)[0])
        golden.append(Golden(text=text, scores=scores, token_count=encoded.token_count, truncated=encoded.truncated))
    return golden
