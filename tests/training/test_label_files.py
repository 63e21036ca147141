"""Small files with labels as people have them: what each cell means, what is said about it, and what is refused.

`label_files.json` gives for each file: ``heads`` (and ``data``) of the config; ``means``, the cells' labels or numbers
(for several heads a list each); ``labels`` in index order; parts of the ``notes``, and of notes that must not be there
(``silent``); or a pattern of the ``error``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.schema import HeadKind
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.corpus import Corpus, read_corpus, read_split
from polyhead_training.data.labels import describe_labels, learn_schema, to_vector
from polyhead_training.data.recipe import Recipe
from polyhead_training.data.sources import open_files
from polyhead_training.data.staging import stage
from polyhead_training.errors import DataError

FILES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "label_files.json").read_text(encoding="utf-8"))


def corpus_of(case: dict[str, Any], folder: Path) -> Corpus:
    """The file as training and validation rows."""
    path = folder / case["file"]
    path.write_text(case["content"], encoding="utf-8")
    heads = [HeadConfig.model_validate(head) for head in case["heads"]]
    return read_corpus(DataConfig(train=str(path), validation=str(path), **case.get("data", {})), heads, folder / "s")


def meanings(labels: Any, schema: Any) -> list[list[Any]]:
    """For each head, what each row of a label matrix means."""
    found: list[list[Any]] = []
    for head in schema:
        block = labels[:, schema.label_columns[head.name]].tolist()
        if head.kind == HeadKind.MULTI_LABEL:
            sets = [[name for name, on in zip(head.labels, row, strict=True) if on == 1] for row in block]
            found.append([None if math.isnan(row[0]) else names for row, names in zip(block, sets, strict=True)])
        else:
            named = [row[0] if not head.labels or math.isnan(row[0]) else head.labels[int(row[0])] for row in block]
            found.append([None if isinstance(one, float) and math.isnan(one) else one for one in named])
    return found


@pytest.mark.parametrize("name", [name for name, case in FILES.items() if "error" not in case])
def test_what_a_cell_means(name: str, tmp_path: Path) -> None:
    """Training has the labels that were meant, and the notes say what was assumed, with the right counts."""
    case = FILES[name]
    (tmp_path / case["file"]).write_text(case["content"], encoding="utf-8")
    path = str(tmp_path / case["file"])
    config = DataConfig(train=path, **case.get("data", {}))
    recipe = Recipe(config, [HeadConfig.model_validate(head) for head in case["heads"]])
    staged = stage(open_files(path, config), recipe, path, tmp_path / "rows.arrow")
    columns = staged.columns(recipe.cells)
    notes = "\n".join([*staged.notes, *describe_labels(recipe.readers, columns, path)])
    schema = learn_schema(recipe.readers, columns, staged.place_at, path)
    cells = zip(*(column.to_pylist() for column in columns), strict=True)
    vectors = np.array([to_vector(row, schema, recipe.cells, "row") for row in cells])
    wanted = case["means"] if len(case["heads"]) > 1 else [case["means"]]
    for head, ours, theirs in zip(schema, meanings(vectors, schema), wanted, strict=True):
        are_sets = head.kind == HeadKind.MULTI_LABEL
        assert ours == [sorted(one, key=head.labels.index) if are_sets and one else one for one in theirs]
    for head_name, labels in case.get("labels", {}).items():
        assert list(schema[head_name].labels) == labels
    for said in case.get("notes", ()):
        assert said in notes
    for unsaid in case.get("silent", ()):
        assert unsaid not in notes


@pytest.mark.parametrize("name", [name for name, case in FILES.items() if "error" not in case])
def test_evaluation_reads_the_same(name: str, tmp_path: Path) -> None:
    """A file has the same labels when it is evaluated."""
    case = FILES[name]
    corpus = corpus_of(case, tmp_path)
    heads = [HeadConfig.model_validate(head) for head in case["heads"]]
    path = str(tmp_path / case["file"])
    split = read_split(path, DataConfig(train=path, **case.get("data", {})), heads, corpus.schema, tmp_path / "e")
    assert meanings(split.labels, corpus.schema) == meanings(corpus.train.labels, corpus.schema)


@pytest.mark.parametrize("name", [name for name, case in FILES.items() if "error" in case])
def test_what_is_not_understood_is_an_error(name: str, tmp_path: Path) -> None:
    """One line with the file and the column; of a single bad cell also the row."""
    case = FILES[name]
    with pytest.raises(DataError, match=case["error"]) as caught:
        corpus_of(case, tmp_path)
    assert "\n" not in str(caught.value)
    assert case["file"] in str(caught.value)
