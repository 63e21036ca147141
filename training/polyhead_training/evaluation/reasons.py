"""Why the most confident mistakes were made: how much each word moved the score of the wrong label.

`polyhead_client.explain` finds that by leaving words out. Here the serving engine answers its questions.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from polyhead.decode import DecodeOptions
from polyhead.predictor import Predictor
from polyhead.schema import HeadKind
from polyhead_client.errors import PolyheadClientError
from polyhead_client.explain import FEWEST_TEXTS, Question, explain
from polyhead_client.explanation import Reason
from polyhead_client.prediction import Prediction
from polyhead_client.schema import ModelSchema
from polyhead_rows.progress import progress
from polyhead_training.evaluation.evaluation import Evaluation
from polyhead_training.evaluation.mistakes import LONGEST_TEXT, confident_places

MOST_PER_HEAD = 3
MOST_MISTAKES = 24  # of all heads: each takes the engine as long as 64 texts like it


def with_reasons(evaluation: Evaluation, predictor: Predictor, show_progress: bool = False) -> Evaluation:
    """The evaluation with the reasons for the most confident mistakes of each head with labels."""
    per_head = max(1, min(MOST_PER_HEAD, MOST_MISTAKES // max(len(evaluation.heads), 1)))
    found = [
        (answers.head, int(np.flatnonzero(answers.known)[row]), answers.head.labels[label])
        for answers in evaluation.answers
        if answers.head.kind != HeadKind.REGRESSION and answers.head.name not in evaluation.left_out
        for row, label in confident_places(answers)[:per_head]
    ]
    reasons: dict[tuple[str, int, str], Reason] = {}
    shown = [place for place in found if len(evaluation.texts[place[1]]) <= LONGEST_TEXT][:MOST_MISTAKES]
    with progress("explaining mistakes", len(shown), shown=show_progress) as bar:
        for head, index, label in shown:
            reason = _reason(predictor, evaluation.texts[index], head.name, label)
            if reason is not None:
                reasons[head.name, index, label] = reason
            bar.advance(1)
    return replace(evaluation, reasons=reasons)


def _reason(predictor: Predictor, text: str, head: str, label: str) -> Reason | None:
    """Why the head gave the label its score; None if the engine's scores are not finite without some words."""
    try:
        with closing(explain(text, head, label, FEWEST_TEXTS)) as steps:
            question = next(steps)
            while True:
                question = steps.send(_answers(predictor, question))
    except StopIteration as done:
        return next(iter(done.value.reasons), None)
    except PolyheadClientError:
        return None


def _answers(predictor: Predictor, question: Question) -> list[Any]:
    if question.output.name == "SCHEMA":
        schema = ModelSchema.from_json(predictor.schema_json())
        return [replace(schema, fields=())]  # the texts are rendered already
    encoded = predictor.encode(question.texts, are_rendered=True)
    scores = predictor.score(encoded)
    if question.output.name == "SCORES":
        return list(scores)
    given = {name: value for name, value in question.parameters.items() if name in DecodeOptions.model_fields}
    answers = predictor.decode(encoded, scores, DecodeOptions.from_parameters(given))
    return [Prediction.from_json(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)) for answer in answers]
