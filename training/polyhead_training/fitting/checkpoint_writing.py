"""Writing a checkpoint: golden rows computed by transformers, then the engine's proof, scores and report."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from polyhead.checkpoint import Spec, write_checkpoint
from polyhead.decode import to_scores
from polyhead.encode import encode, with_ngrams
from polyhead.errors import one_line
from polyhead.files import why_full
from polyhead.golden import GoldenRow
from polyhead.ngrams import NGrams
from polyhead.predictor import Predictor
from polyhead.schema import Schema
from polyhead.template import Template, json_object
from polyhead.windows import LongTexts, Windows
from polyhead_rows.progress import progress
from polyhead_training.config import TrainingConfig
from polyhead_training.data.corpus import Corpus, Split
from polyhead_training.errors import ConfigError, DataError
from polyhead_training.evaluation.answer_distribution import answer_distribution
from polyhead_training.evaluation.baselines import fit_baselines
from polyhead_training.evaluation.evaluation import Evaluation, evaluate
from polyhead_training.evaluation.linear_model import LinearModel
from polyhead_training.evaluation.notes import notes_of
from polyhead_training.evaluation.report import write_report
from polyhead_training.evaluation.shift import reached_if_similar
from polyhead_training.evaluation.slices import SliceOptions


@dataclass(frozen=True)
class Fitted:
    """A model and its description: a checkpoint without golden rows and scores."""

    model: Any
    spec: Spec
    schema: Schema
    tokenizer: Tokenizer
    ngrams: NGrams | None = None


def rehearse(config: TrainingConfig, fitted: Fitted, texts: Sequence[str]) -> None:
    """Writes and serves the untrained model once, so that errors show before training and not after it.

    Raises:
        ConfigError: says the cause.
        DataError: no text has a token.
    """
    untrained = Fitted(copy.deepcopy(fitted.model), fitted.spec, fitted.schema, fitted.tokenizer)
    with tempfile.TemporaryDirectory(prefix="polyhead-rehearsal-") as scratch:
        try:
            write_unscored(Path(scratch) / "checkpoint", untrained, texts, rows=1, seed=config.seed)
        except DataError:
            raise
        except Exception as error:  # a head class or torch may raise anything
            if why_full(error) is not None:
                raise
            # Without the names of scratch files, which mean nothing to the user.
            raise ConfigError("model: " + re.sub(rf"{re.escape(scratch)}\S*: ", "", one_line(error))) from error


def write_unscored(
    output: Path,
    fitted: Fitted,
    texts: Sequence[str],
    *,
    rows: int,
    seed: int,
    template_fields: Sequence[str] | None = None,
) -> float:
    """Writes a checkpoint without scores; returns the engine's largest distance from transformers."""
    return _write(output, fitted, texts, template_fields, rows, seed, {}, lambda _: None, lambda _: None)


def write_evaluated(
    config: TrainingConfig,
    fitted: Fitted,
    corpus: Corpus,
    *,
    training: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    calibration: Mapping[str, Any] | None,
    linear: LinearModel | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], Evaluation, float]:
    """Writes the checkpoint with the engine's scores on validation and test, and the report on the last of them.

    Args:
        training: what ``metrics.json`` holds of the fit.
        history: the Trainer's ``log_history``.
        linear: the linear model, if it is fitted already.
        say: prints a line per step of the work.

    Returns:
        The content of ``metrics.json``, the evaluation that the report shows, and the engine's largest distance from
        transformers.
    """
    metrics: dict[str, Any] = {}
    evaluations: list[Evaluation] = []
    baselines = None
    if config.report.baselines:
        if linear is None:
            say("fitting a linear model to compare with")
        baselines = fit_baselines(
            corpus.train, corpus.validation, fitted.schema, config.calibration, config.seed, True, linear
        )

    def score(fresh: Path) -> None:
        predictor = Predictor.load(fresh, "cuda" if torch.cuda.is_available() else "cpu", precision="fp32")
        for name in ("similar", "validation", "test"):
            split = corpus.splits.get(name)
            if split is None:
                continue
            say(f"evaluating {len(split)} {name} texts with the engine")
            evaluation = evaluate(
                predictor, split, [split.group_column] if split.group_column else [], show_progress=True, name=name,
                slice_options=SliceOptions(group_column=split.group_column), with_suspects=config.report.suspects,
            )  # fmt: skip
            evaluation = replace(evaluation, measured_on=measured_on(name, split, len(evaluation.texts)))
            if baselines is not None:
                measured = baselines.measure(evaluation.texts, evaluation.labels, corpus.schema)
                evaluation = replace(evaluation, baselines=measured, baselines_note=baselines.note)
            metrics[name] = evaluation.metrics
            if name == "validation":
                answer_distribution(evaluation).write(fresh)
            evaluations.append(evaluation)
        *others, evaluation = evaluations
        if config.data.shift_column is not None:
            evaluation = _with_shift(evaluation, others[0] if corpus.similar is not None else None, corpus, config)
            evaluations[-1] = evaluation
            metrics["shift"] = {head: found.to_json() for head, found in evaluation.shift.items()}
        metrics["measured_on"] = {each.splits[0]: each.measured_on for each in evaluations}
        if baselines is not None:
            metrics["baselines"] = {each.splits[0]: each.baselines for each in evaluations}
            metrics["constants"] = {
                name: constant.model_dump(exclude_defaults=True) for name, constant in baselines.constants.items()
            }
        metrics["notes"] = notes_of(evaluation)
        metrics["training"] = dict(training)
        metrics["calibration"] = calibration
        (fresh / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if config.report.reasons:
            from polyhead_training.evaluation.reasons import with_reasons  # it imports the client and its libraries

            evaluation = evaluations[-1] = with_reasons(evaluation, predictor, show_progress=True)
        say("writing the report")
        write_report(
            fresh / "report",
            evaluation,
            name=config.output.name,
            source="test rows" if corpus.test is not None else "validation rows",
            history=history,
            calibration=calibration,
            training=training,
            others=others,
        )

    report = {
        "training.json": config.model_dump_json(indent=2).encode(),
        "history.json": json.dumps(history, indent=2).encode(),
    }
    source = corpus.test or corpus.validation
    distance = _write(
        config.output, fitted, source.texts, source.template_fields, config.golden_rows, config.seed, report, score, say
    )
    return metrics, evaluations[-1], distance


def _with_shift(
    evaluation: Evaluation, similar: Evaluation | None, corpus: Corpus, config: TrainingConfig
) -> Evaluation:
    """The evaluation beside that of similar rows, if there are any."""
    called = (corpus.test or corpus.validation).called
    if similar is None:
        return evaluation.beside({}, called)
    if_similar = {}
    if config.calibration.temperature:
        pairs = [(each.scores, each.labels) for each in (similar, evaluation)]
        if_similar = reached_if_similar(pairs[0], pairs[1], evaluation.schema)
    return evaluation.beside(similar.reached, called, if_similar)


def measured_on(name: str, split: Split, rows: int) -> str:
    """One sentence: on which rows the scores of a split are measured, and what was chosen on them."""
    measured = f"Measured on {rows:,} {name} rows {split.origin}"
    if name in ("test", "similar"):
        text = f"{measured}: nothing was chosen on them."
    else:
        text = (
            f"{measured}. The best weights and the calibration were chosen on these same rows, so new texts will get "
            "somewhat lower scores."
        )
    if split.in_train:
        text += f" {split.in_train:,} of them have a text of a training row, so the scores are too good."
    return text


@torch.inference_mode()
def golden_rows(
    texts: Sequence[str], model: nn.Module, tokenizer: Tokenizer, schema: Schema, max_length: int, rows: int, seed: int,
    template: Template | None = None, template_fields: Sequence[str] | None = None,
    long_texts: LongTexts | None = None, ngrams: NGrams | None = None,
) -> list[GoldenRow]:  # fmt: skip
    """Scores in float32 of at most `rows` texts, drawn at random. One window per forward, so there is no padding.

    With a template the texts are rendered already. A row keeps its fields if they render to its text, which text
    transforms may prevent. A server gets a row without fields as plain text. So a text that is a JSON object becomes no
    golden row.

    Args:
        template_fields: of each text, as JSON.
        long_texts: the windows of texts longer than `max_length`; by default these are truncated.

    Raises:
        DataError: the tokenizer's normalizer leaves nothing of any text.
    """
    model = model.to("cpu", torch.float32).eval()
    windows = Windows.of(max_length, long_texts)
    golden: dict[str, GoldenRow] = {}
    with progress("computing golden rows", min(rows, len(texts)), shown=rows > 1) as bar:
        for index in np.random.default_rng(seed).permutation(len(texts)):
            if len(golden) == rows:
                break
            text = texts[int(index)]
            (encoded,) = encode([text], tokenizer, windows.reach, ngrams)
            if encoded.error or text in golden or (template is not None and json_object(text) is not None):
                continue
            fields = None
            if template is not None and template_fields is not None:
                fields = json.loads(template_fields[int(index)])
                fields = fields if template.render(fields) == text else None
            parts = [torch.tensor([window]) for window in windows.cut(encoded.token_ids)]
            # With a mask, because a text may end like padding.
            each = [model(ids, attention_mask=torch.ones_like(ids)).logits.numpy() for ids in parts]
            logits = with_ngrams(windows.pool(np.concatenate(each), [encoded.token_count]), [encoded])
            golden[text] = GoldenRow(
                text=text,
                scores=tuple(float(score) for score in to_scores(logits, schema)[0]),
                token_count=encoded.token_count,
                truncated=encoded.truncated,
                fields=fields,
            )
            bar.advance(1)
    if not golden:
        raise DataError("golden rows: the tokenizer leaves no token of any text, or all texts are JSON objects")
    return list(golden.values())


def _write(
    output: Path,
    fitted: Fitted,
    texts: Sequence[str],
    template_fields: Sequence[str] | None,
    rows: int,
    seed: int,
    report: dict[str, bytes],
    score: Callable[[Path], None],
    say: Callable[[str], None],
) -> float:
    model, spec, schema = fitted.model, fitted.spec, fitted.schema
    golden = golden_rows(
        texts,
        model,
        fitted.tokenizer,
        schema,
        spec.max_length,
        rows,
        seed,
        spec.template,
        template_fields,
        spec.long_texts,
        fitted.ngrams,
    )
    distances: list[float] = []

    def prove(fresh: Path) -> None:
        say(f"proving the engine with {len(golden)} golden rows")
        distances.append(Predictor.load(fresh, precision="fp32").check_golden())
        score(fresh)

    write_checkpoint(
        output,
        config=_checkpoint_config(model, schema),
        spec=spec,
        schema=schema,
        tensors=model.state_dict(),
        tokenizer_json=fitted.tokenizer.to_str(),
        ngrams=fitted.ngrams,
        golden=golden,
        metrics={},
        report=report,
        prove=prove,
    )
    return distances[0]


def _checkpoint_config(model: Any, schema: Schema) -> dict[str, Any]:
    config: dict[str, Any] = model.config.to_dict()
    columns = schema.column_names()
    return config | {
        "architectures": [type(model).__name__],
        "dtype": "float32",  # of the tensors; the Trainer sets it only in a session that saves a checkpoint
        "id2label": {str(i): column for i, column in enumerate(columns)},
        "label2id": {column: i for i, column in enumerate(columns)},
    }
