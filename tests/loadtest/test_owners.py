"""Finding whose answer a wrong answer is."""

from __future__ import annotations

import json
from dataclasses import replace

from loadtest.golden import GoldenRow
from loadtest.owners import find_owner
from polyhead_client import LabelScore, ModelSchema, Prediction, SingleLabel
from tests.client.fake_triton import ANSWER, SCHEMA, SCORES

SERVED = ModelSchema.from_json(json.dumps(SCHEMA))
ASKED = GoldenRow(1, "asked", (0.1, 0.2, 0.7, 0.1, 0.2, 1.0), 4, False)
OWNER = GoldenRow(2, "owner", tuple(SCORES), 4, False)
LONGER = GoldenRow(3, "longer", tuple(SCORES), 5, False)
ANSWERED = Prediction.from_json(json.dumps(ANSWER))


def test_the_answer_to_another_text_is_found() -> None:
    """The row whose answer it is in full is its owner, also where others share its scores but not its tokens."""
    assert find_owner(ANSWERED, ASKED, [ASKED, LONGER, OWNER], SERVED, 1e-3) == OWNER


def test_a_wrong_answer_may_be_nobodys() -> None:
    """An answer that fits no other text, or that is an error, has no owner; nor is a text its own other."""
    assert find_owner(ANSWERED, ASKED, [ASKED, LONGER], SERVED, 1e-3) is None
    assert find_owner(ANSWERED, OWNER, [OWNER], SERVED, 1e-3) is None
    odd = replace(ANSWERED, heads={**ANSWERED.heads, "topic": SingleLabel((LabelScore("opera", 0.7),))})
    assert find_owner(odd, ASKED, [ASKED, OWNER], SERVED, 1e-3) is None
    assert find_owner(Prediction(error="no"), ASKED, [ASKED, OWNER], SERVED, 1e-3) is None
