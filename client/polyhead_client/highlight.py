"""A text with its words marked by what they did to a score, as HTML for a notebook.

Blue words raise the score, orange words lower it. The colours are translucent, so they fit dark and light pages, and
differ for colour-blind readers. Nothing of a text becomes markup.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

RAISES, LOWERS = "rgba(64,132,244,{:.2f})", "rgba(244,140,32,{:.2f})"
STRONGEST_ALPHA = 0.65
DIMMED = "opacity:.6"
BLOCK = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7;margin:.2em 0 .6em;unicode-bidi:isolate"
LEGEND = (
    f'<span style="background:{RAISES.format(STRONGEST_ALPHA)}">raises the score</span> '
    f'<span style="background:{LOWERS.format(STRONGEST_ALPHA)}">lowers the score</span>'
)


class Piece(NamedTuple):
    """A piece of a text.

    Attributes:
        weight: from -1 to 1: the effect as a share of the strongest effect; 0 for what was not left out.
        title: what it did, in words; empty for what was not left out.
        has_score: whether the text without it has a score.
        is_read: whether the model read it.
    """

    text: str
    weight: float = 0.0
    title: str = ""
    has_score: bool = True
    is_read: bool = True


def reason_html(title: str, blocks: Iterable[tuple[str | None, Iterable[Piece]]]) -> str:
    """The head with its answer, and below it the pieces of the text or of each field."""
    return f"<div><b><bdi>{escape_text(title)}</bdi></b></div>{blocks_html(blocks)}"


def blocks_html(blocks: Iterable[tuple[str | None, Iterable[Piece]]]) -> str:
    """The pieces of the text or of each field."""
    html = []
    for field, pieces in blocks:
        if field is not None:
            html.append(f'<div style="{DIMMED}"><bdi>{escape_text(field)}</bdi></div>')
        html.append(f'<div dir="auto" style="{BLOCK}">{"".join(map(_piece_html, pieces))}</div>')
    return "".join(html)


def explanation_html(reasons: Iterable[str], notes: Iterable[str]) -> str:
    """The HTML of all reasons, and how to read them."""
    return f"<div>{''.join(reasons)}{notes_html(notes)}</div>"


def notes_html(notes: Iterable[str]) -> str:
    """What the colours mean, and the notes."""
    return f'<div style="font-size:.85em">{LEGEND} <span style="{DIMMED}">{escape_text(" ".join(notes))}</span></div>'


def _piece_html(piece: Piece) -> str:
    text = escape_text(piece.text)
    if not piece.title:
        return text if piece.is_read else f'<span style="{DIMMED}" title="the model does not read this">{text}</span>'
    style = ""
    if not piece.has_score:
        style = "outline:1px dotted"
    elif piece.weight:
        colour = RAISES if piece.weight > 0 else LOWERS
        style = f"background:{colour.format(STRONGEST_ALPHA * min(abs(piece.weight), 1.0))}"
    return f'<span style="{style}" title="{escape_text(piece.title)}">{text}</span>'


def escape_text(text: str) -> str:
    """The text for HTML. Characters that pages show in many ways are replaced."""
    # Pages show control characters and lone surrogates in many ways, or not at all. Directions must stay for the text.
    kept = (one if one.isprintable() or one in "\n\t" or _is_format(one) else "�" for one in text)
    return escape("".join(kept))


def _is_format(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Zs", "Zl", "Zp")
