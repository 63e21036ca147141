"""Why a text got its answer: what its words did to a score, found by leaving them out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from polyhead_client.errors import UnknownNameError
from polyhead_client.highlight import Piece, explanation_html, reason_html
from polyhead_client.prediction import Prediction
from polyhead_client.words import TextPart, Value, value_text

SHOWN_CHARACTERS = 60  # of a text, a word or a sentence
FINE = 0.001  # a server with a smaller tolerance does not round


def shorten(text: str) -> str:
    """The text as people are shown it: its beginning if it is long."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def in_words(effect: float | None) -> str:
    """What an effect says about the score."""
    if effect is None:
        return "there is no score"
    shown = f"{abs(effect):.2g}"
    if math.isclose(effect, 0.0, abs_tol=1e-6):
        return "the score would be the same"
    return f"the score would be {shown} {'lower' if effect > 0 else 'higher'}"


@dataclass(frozen=True, slots=True)
class PartEffect(TextPart):
    """What a word or a sentence did to a score.

    Attributes:
        effect: the score minus the score without this part. 0.31 means: without it the score would be 0.31 lower. None
            if the text without it has no answer, for example because nothing is left of it.
        places: at how many places of the text the word stands.
        effect_everywhere: the same if the word is left out at all of its places; None if there is one place only, if
            that was not asked, or if the text has no answer then.
    """

    effect: float | None = None
    places: int = 1
    effect_everywhere: float | None = None

    @property
    def largest(self) -> float | None:
        """The effect or, if it is larger, the effect at all places."""
        if self.effect is None or self.effect_everywhere is None:
            return self.effect
        return max(self.effect, self.effect_everywhere, key=abs)

    @property
    def strength(self) -> float:
        """How far it moves the score, in whichever direction; infinite if there is no score without it."""
        return math.inf if self.largest is None else abs(self.largest)

    @property
    def sentence(self) -> str:
        """The effect in words."""
        everywhere = ""
        if self.effect_everywhere is not None:
            everywhere = f"; without all {self.places} of them {in_words(self.effect_everywhere)}"
        return f"without {shorten(self.text)!r} {in_words(self.effect)}{everywhere}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a head gives a label its score, or gives its number.

    Attributes:
        head: the head's name.
        label: None for a regression.
        score: the score of the whole text.
        words: the words that were left out one by one, in the text's order.
        sentences: of a long text, the sentences, or several neighbouring ones together, in the text's order; `words`
            are then those of the strongest ones. Empty if each word was left out.
        unread: the ends of the text, or of fields, that the model did not read. They move nothing.
        text: the text, or its fields.
    """

    head: str
    label: str | None
    score: float
    words: tuple[PartEffect, ...]
    sentences: tuple[PartEffect, ...]
    unread: tuple[TextPart, ...]
    text: str | Mapping[str, Value]

    @property
    def title(self) -> str:
        """The head with its answer."""
        return f"{self.head}: {self.score:.4g}" if self.label is None else f"{self.head}: {self.label} {self.score:.2f}"

    def strongest(self, count: int = 10) -> list[PartEffect]:
        """The words that move the score most, whether up or down."""
        return sorted(self.words, key=lambda word: word.strength, reverse=True)[:count]

    def fields(self) -> list[str | None]:
        """The fields that have a value; one None for a text without fields."""
        if isinstance(self.text, str):
            return [None]
        return [name for name in self.text if value_text(self.text, name)]

    def pieces(self, field: str | None = None) -> Iterator[Piece]:
        """The pieces of the text, or of a field, in order; together they are all of it.

        A sentence whose words were not left out one by one is one piece.
        """
        value = value_text(self.text, field)
        most = max((abs(one.largest or 0.0) for one in (*self.words, *self.sentences)), default=0.0)
        starts = {word.start for word in self.words if word.field == field}
        parts: list[TextPart] = [word for word in self.words if word.field == field]
        parts += [one for one in self.sentences if one.field == field and starts.isdisjoint(range(one.start, one.end))]
        parts += [one for one in self.unread if one.field == field]
        position = 0
        for part in sorted(parts, key=lambda one: one.start):
            if position < part.start:
                yield Piece(value[position : part.start])
            shown, position = value[part.start : part.end], part.end
            if isinstance(part, PartEffect):
                weight = (part.largest or 0.0) / (most or 1.0)
                yield Piece(shown, weight, part.sentence, part.effect is not None)
            else:
                yield Piece(shown, is_read=False)
        if position < len(value):
            yield Piece(value[position:])

    def blocks(self) -> Iterator[tuple[str | None, Iterator[Piece]]]:
        """Each field and its pieces; None for a text without fields."""
        return ((field, self.pieces(field)) for field in self.fields())

    def _repr_html_(self) -> str:
        return reason_html(self.title, self.blocks())


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a text got its answer.

    Attributes:
        prediction: the answer.
        reasons: one per head and label that are explained, in the order of the heads.
        texts: how many texts the server scored for this.
        tolerance: how far a score may be from its float32 value, as the server states it; None if it does not.
    """

    prediction: Prediction
    reasons: tuple[Reason, ...]
    texts: int
    tolerance: float | None = None

    def __iter__(self) -> Iterator[Reason]:
        return iter(self.reasons)

    def __getitem__(self, head: str) -> Reason:
        """The first reason of this head."""
        found = next((reason for reason in self.reasons if reason.head == head), None)
        if found is None:
            heads = list(dict.fromkeys(reason.head for reason in self.reasons))
            raise UnknownNameError(f"no head {head!r}; explained are {heads}")
        return found

    def notes(self) -> list[str]:
        """What a reader of the effects must know."""
        found = [f"{self.texts} texts were scored."]
        if self.prediction.truncated:
            found.append(
                f"The model reads only {self.prediction.token_count} tokens of this text. Words after them move "
                "nothing. If a word before them is left out, the model reads more of the rest."
            )
        if any(reason.sentences for reason in self.reasons):
            found.append(
                "The text is long, so only the words of its strongest sentences were left out one by one."
                if any(reason.words for reason in self.reasons)
                else "The text is so long that no words were left out one by one: allow more texts with most_texts."
            )
        if self.tolerance is not None and self.tolerance > FINE:
            found.append(f"The server rounds, so effects below {self.tolerance:g} may be rounding.")
        return found

    def to_json(self) -> dict[str, Any]:
        """An object ready for ``json.dumps``."""
        reasons = [dataclasses.asdict(reason) for reason in self.reasons]
        for reason in reasons:
            del reason["text"]
        return {
            "prediction": self.prediction.to_json(),
            "texts": self.texts,
            "tolerance": self.tolerance,
            "reasons": reasons,
        }

    def _repr_html_(self) -> str:
        return explanation_html((reason._repr_html_() for reason in self.reasons), self.notes())
