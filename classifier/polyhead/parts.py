"""Cuts a batch into parts that are computed and answered one after the other: short texts do not wait for long ones."""

from __future__ import annotations

from collections.abc import Sequence


def parts(token_ids: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Positions of the texts, shortest text first, cut into parts.

    A part has at most `tokens` tokens, or one text that alone has more. Identical texts stand side by side and count
    once, as the engine computes them once.
    """
    cut: list[list[int]] = []
    room = 0
    previous: Sequence[int] | None = None
    for position in sorted(range(len(token_ids)), key=lambda i: (len(token_ids[i]), token_ids[i])):
        text = token_ids[position]
        cost = 0 if text == previous else len(text)
        if not cut or cost > room:
            cut.append([])
            room = max(tokens, len(text))
            cost = len(text)
        cut[-1].append(position)
        room -= cost
        previous = text
    return cut
