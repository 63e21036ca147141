"""Explains one text, as a generator: it yields questions to the model and is sent the answers. Without I/O.

`Client.explain` and `AsyncClient.explain` ask the questions.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from polyhead_client.errors import BadResponseError, TextError, UnknownNameError, UsageError
from polyhead_client.explanation import Explanation, PartEffect, Reason
from polyhead_client.fields import fields_json
from polyhead_client.leaving_out import REPLACED, LeftOut, Scores, leave_out
from polyhead_client.operations import CANARY, PREDICTION, SCHEMA, SCORES, ModelOutput
from polyhead_client.prediction import MultiLabel, Prediction, Regression, SingleLabel
from polyhead_client.request import PROBE, Parameters, check_count
from polyhead_client.schema import ModelSchema
from polyhead_client.words import Removed, SplitText, TextPart, Value, value_text

MOST_TEXTS = 128
FEWEST_TEXTS = 64  # finding the end of what the model reads takes up to 36
LONGEST_TEXT = 1_000_000  # characters; each text that is asked has nearly as many
PROBES = 15  # how closely that end is found: in a 16th of the part where it must be
ROUNDING = 1e-4  # how far two scores of one text may be apart if the server states no tolerance


@dataclass(frozen=True, slots=True)
class Question:
    """One output of the model for each of these texts."""

    texts: list[Any]
    output: ModelOutput[Any]
    parameters: Parameters = field(default_factory=lambda: dict(PROBE))


Answers = list[Any]  # one per text, as the output's `read` returns them
Explaining = Generator[Question, Answers, Explanation]


@dataclass(frozen=True, slots=True)
class _Target:
    head: str
    label: str | None
    column: int


def explain(text: Any, head: str | None, label: str | None, most_texts: int) -> Explaining:
    """Explains one text; see `polyhead_client.client.Client.explain`."""
    if not isinstance(text, str | Mapping):
        raise UsageError(f"text must be a str or a dict of fields, got {type(text).__name__}; explain one at a time")
    if check_count("most_texts", most_texts) < FEWEST_TEXTS:
        raise UsageError(f"most_texts must be at least {FEWEST_TEXTS}, got {most_texts}")
    (schema,) = yield Question([CANARY.decode()], SCHEMA)
    head = _check_names(schema, head, label)
    (prediction,) = yield Question([text], PREDICTION)
    if prediction.error is not None:
        error = TextError(f"the text has no answer to explain: {prediction.error}")
        error.reason = prediction.error
        raise error
    if not all(
        prediction.heads.keys() == {one.name for one in schema.heads}
        and set(_answered_scores(prediction, one.name)) <= set(one.labels or (None,))
        for one in schema.heads
    ):
        raise BadResponseError(
            "the answer has other heads or labels than the schema; was the model replaced? Ask again"
        )
    source = _source(text, schema)
    length = sum(len(value_text(source, name)) for name in ([None] if isinstance(source, str) else source))
    if length > LONGEST_TEXT:
        raise UsageError(
            f"the text has {length:,} characters, and at most {LONGEST_TEXT:,} can be explained; cut it "
            f"(the model reads its first {schema.max_length} tokens only)"
        )
    split = SplitText.split(source, schema.fields)
    read, texts = len(split.words), 1
    tolerance = ROUNDING if schema.tolerance is None else max(schema.tolerance, ROUNDING)
    if prediction.truncated:
        read, asked = yield from _find_end(split, tolerance)
        texts += asked
    targets: list[_Target] = []

    def choose(whole: Scores) -> Sequence[int]:
        if len(whole) != schema.width:
            raise BadResponseError(f"the text has {len(whole)} scores, but the schema {schema.width}; ask again")
        targets[:] = _targets(schema, prediction, whole, head, label)
        for target in targets:
            answered = _answered_scores(prediction, target.head).get(target.label)
            if answered is not None and not np.isclose(whole[target.column], answered, rtol=REPLACED, atol=tolerance):
                raise BadResponseError("the scores are not those of the answer; was the model replaced? Ask again")
        return [target.column for target in targets]

    left_out = yield from _leave_out(leave_out(split, read, most_texts - texts, choose, tolerance))
    choose(left_out.whole)
    everywhere = {split.words[place]: places for places in split.places().values() for place in places}
    unread = tuple(_unread(split, read))
    return Explanation(
        prediction,
        tuple(_reason(target, split, left_out, everywhere, unread) for target in targets),
        texts + left_out.texts,
        schema.tolerance,
    )


def _check_names(schema: ModelSchema, head: str | None, label: str | None) -> str | None:
    """The head, also if only its label is given.

    Raises:
        UnknownNameError: there is no such head or label.
        UsageError: several heads have this label.
    """
    if head is None and label is not None:
        having = [one.name for one in schema.heads if label in one.labels]
        if len(having) > 1:
            raise UsageError(f"label {label!r} belongs to the heads {having}: name the head too")
        if not having:
            raise UnknownNameError(f"no head has label {label!r}; the heads are {[one.name for one in schema.heads]}")
        head = having[0]
    if head is not None and label is not None:
        schema.column(head, label)
    elif head is not None:
        _ = schema[head]
    return head


def _source(text: str | Mapping[Any, Any], schema: ModelSchema) -> str | dict[str, Value]:
    """The text, or its fields with the values that the server gets. The server also takes fields as JSON in a str."""
    if not isinstance(text, str):
        found: dict[str, Value] = json.loads(fields_json(text, 0, schema.fields))
        return found
    if schema.fields:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(fields, dict):
            return dict(json.loads(fields_json(fields, 0, schema.fields)))
    return text


def _find_end(split: SplitText, tolerance: float) -> Generator[Question, Answers, tuple[int, int]]:
    """The position from which on the model reads no word, or a position a little after it; and the texts it took.

    If a beginning of the text is itself too long for the model and has the same scores, nothing after it is read.
    """
    count, texts = len(split.words), 0
    halves = [count >> half for half in range(1, count.bit_length())]
    least, most = 0, count
    for lengths in (halves, None):
        lengths = lengths or sorted({least + (most - least) * probe // (PROBES + 1) for probe in range(1, PROBES + 1)})
        lengths = [length for length in lengths if least < length < most]
        if not lengths:
            break
        beginnings = [split.without(range(length, count)) for length in lengths]
        whole, *found = yield Question(
            [split.without(()), *beginnings], PREDICTION, {**PROBE, "top_k": 1, "threshold": 0.0}
        )
        texts += len(found) + 1
        for length, beginning in sorted(zip(lengths, found, strict=True), key=lambda pair: pair[0]):
            if beginning.truncated and _same(beginning, whole, tolerance):
                most = length
                break
            least = length
    return most, texts


def _same(prediction: Prediction, other: Prediction, tolerance: float) -> bool:
    """Whether both have the same answer, with nearly the same scores."""
    for head in other.heads:
        mine, others = (_answered_scores(one, head) for one in (prediction, other))
        if list(mine) != list(others):
            return False
        if not np.allclose(list(mine.values()), list(others.values()), rtol=tolerance, atol=tolerance):
            return False
    return True


def _answered_scores(prediction: Prediction, head: str) -> dict[str | None, float]:
    """The scores that the answer of a head names, by label; a regression has no label."""
    match prediction[head]:
        case SingleLabel(chosen) | MultiLabel(chosen):
            return {one.label: one.score for one in chosen}
        case Regression(value):
            return {None: value}


def _leave_out(asking: Generator[list[Any], Scores, LeftOut]) -> Generator[Question, Answers, LeftOut]:
    """Asks the model for the scores of the texts that it yields."""
    try:
        texts = next(asking)
        while True:
            rows = yield Question(texts, SCORES)
            if len({len(row) for row in rows}) > 1:
                raise BadResponseError("SCORES changed its width, so the model was replaced; ask again")
            texts = asking.send(np.stack(rows))
    except StopIteration as done:
        left_out: LeftOut = done.value
        return left_out


def _targets(
    schema: ModelSchema, prediction: Prediction, whole: Scores, head: str | None, label: str | None
) -> list[_Target]:
    """What is explained: the label that is given, otherwise what the heads answer."""
    found = []
    for one in schema.heads if head is None else [schema[head]]:
        labels = (label,) if label is not None else _answered(schema, prediction, whole, one.name)
        found += [_Target(one.name, name, schema.column(one.name, name)) for name in labels]
    return found


def _answered(schema: ModelSchema, prediction: Prediction, whole: Scores, head: str) -> Sequence[str | None]:
    """The labels of a head's answer; of a rejected one the best label, of none the one closest to its threshold."""
    match prediction[head]:
        case SingleLabel() as answer:
            return [answer.top[0].label]
        case MultiLabel() as answer if answer.names:
            return answer.names
        case MultiLabel():
            described = schema[head]
            over = whole[schema.columns[head]] - np.asarray(described.thresholds or 0.0)
            return [described.labels[int(over.argmax())]]
        case _:
            return [None]


def _reason(
    target: _Target,
    split: SplitText,
    left_out: LeftOut,
    everywhere: Mapping[TextPart, Removed],
    unread: tuple[TextPart, ...],
) -> Reason:
    words = []
    for (place,) in sorted(removed for removed in left_out.rows if len(removed) == 1):
        word = split.words[place]
        places = everywhere.get(word, (place,))
        of_all = left_out.effect(places, target.column) if len(places) > 1 else None
        effect = left_out.effect((place,), target.column)
        words.append(PartEffect(word.text, word.start, word.end, word.field, effect, len(places), of_all))
    return Reason(
        target.head,
        target.label,
        float(left_out.whole[target.column]),
        tuple(words),
        tuple(_part(split, group, left_out.effect(group, target.column)) for group in left_out.groups),
        unread,
        split.source,
    )


def _part(split: SplitText, places: range, effect: float | None) -> PartEffect:
    first, last = split.words[places[0]], split.words[places[-1]]
    text = split.value(first.field)[first.start : last.end]
    return PartEffect(text, first.start, last.end, first.field, effect)


def _unread(split: SplitText, read: int) -> Iterator[TextPart]:
    """The end of the text, or of each field, that the model does not read."""
    for field_name, words in groupby(split.words[read:], lambda word: word.field):
        first, *others = words
        end = others[-1].end if others else first.end
        yield TextPart(split.value(field_name)[first.start : end], first.start, end, field_name)
