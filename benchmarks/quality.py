"""Answer quality on the Debian texts: one model with three heads, and TF-IDF with logistic regression per head.

The model is trained from scratch by ``polyhead-train`` with quality.toml. The baseline gets word 1- and 2-grams,
document frequencies of all texts that the model's warm start reads, and the regularization strength and the threshold
of tags that are best on validation. Both are scored on the test rows.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import scipy.sparse
from joblib import Parallel, delayed
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from benchmarks.result import RESULTS, write_result
from polyhead_training.config import TrainingConfig, read_config
from polyhead_training.fitting.fit import fit

CONFIG = Path(__file__).parent / "quality.toml"
STRENGTHS = (1.0, 3.0, 10.0, 30.0)
THRESHOLDS = np.arange(0.15, 0.55, 0.05)
COLOURS = {"baseline": "#c8553d", "polyhead": "#2a6fbb"}


def main(options: Sequence[str] | None = None) -> None:
    """Trains both, scores both on the test rows and prints one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.json")
    parser.add_argument("--trained", action="store_true", help="score the config's output without training it")
    arguments = parser.parse_args(options)
    config = read_config(arguments.config)
    splits = {
        name: pandas.read_json(str(getattr(config.data, name)), lines=True) for name in ("train", "validation", "test")
    }
    started = time.monotonic()
    baseline = _baseline(splits, _texts(config, splits["train"]))
    baseline_s = time.monotonic() - started
    print(f"TF-IDF with logistic regression, {baseline_s:.0f} s: {baseline}", flush=True)
    if not arguments.trained:
        fit(config, say=lambda line: print(line, flush=True), restart=True)
    metrics = json.loads((config.output / "metrics.json").read_text(encoding="utf-8"))
    test = metrics["test"]
    model = {
        "section accuracy": test["section"]["accuracy"],
        "role accuracy": test["role"]["accuracy"],
        "tags micro-F1": test["tags"]["micro_f1"],
    }
    summary: dict[str, Any] = {
        "model": {name: round(value, 4) for name, value in model.items()},
        "baseline": {name: round(value, 4) for name, value in baseline.items()},
        "heads_won": sum(model[name] > baseline[name] for name in model),
        "train_s": round(metrics["training"]["seconds"]),
        "baseline_s": round(baseline_s),
    }
    details = {
        "config": tomllib.loads(arguments.config.read_text(encoding="utf-8")),
        "rows": {n: len(r) for n, r in splits.items()},
    }
    write_result(arguments.out, summary | details, _plot(model, baseline))
    print(json.dumps(summary))


def _texts(config: TrainingConfig, train: pandas.DataFrame) -> list[str]:
    """All texts that the model learns from."""
    more = [] if config.warm_start is None else config.warm_start.texts
    more = [more] if isinstance(more, str) else more
    return [*train["text"], *(text for path in more for text in pandas.read_json(path, lines=True)["text"])]


def _baseline(splits: dict[str, pandas.DataFrame], texts: Sequence[str]) -> dict[str, float]:
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, strip_accents="unicode")
    vectorizer.fit(texts)
    features = {name: vectorizer.transform(rows["text"]).astype(np.float32) for name, rows in splits.items()}
    scores = {
        f"{head} accuracy": _best_accuracy(features, {name: rows[head].to_numpy() for name, rows in splits.items()})
        for head in ("section", "role")
    }
    binarizer = MultiLabelBinarizer().fit(splits["train"]["tags"])
    tags = {name: binarizer.transform(rows["tags"]) for name, rows in splits.items()}
    return scores | {"tags micro-F1": _best_micro_f1(features, tags)}


def _best_accuracy(features: dict[str, scipy.sparse.csr_matrix], labels: dict[str, NDArray[Any]]) -> float:
    models = Parallel(n_jobs=-1)(
        delayed(_logistic)(features["train"], labels["train"], strength) for strength in STRENGTHS
    )
    best = max(models, key=lambda model: model.score(features["validation"], labels["validation"]))
    return float(accuracy_score(labels["test"], best.predict(features["test"])))


def _best_micro_f1(features: dict[str, scipy.sparse.csr_matrix], tags: dict[str, NDArray[Any]]) -> float:
    def probabilities(strength: float) -> dict[str, NDArray[np.float64]]:
        models = Parallel(n_jobs=-1)(
            delayed(_logistic)(features["train"], column, strength) for column in tags["train"].T
        )
        return {
            name: np.stack([model.predict_proba(features[name])[:, 1] for model in models], axis=1)
            for name in ("validation", "test")
        }

    def micro_f1(split: str, strength: float, threshold: float) -> float:
        return float(f1_score(tags[split], found[strength][split] >= threshold, average="micro", zero_division=0))

    found = {strength: probabilities(strength) for strength in STRENGTHS}
    best = max(
        ((strength, threshold) for strength in STRENGTHS for threshold in THRESHOLDS),
        key=lambda choice: micro_f1("validation", *choice),
    )
    return micro_f1("test", *best)


def _logistic(features: scipy.sparse.csr_matrix, labels: NDArray[Any], strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=1000).fit(features, labels)


def _plot(model: dict[str, float], baseline: dict[str, float]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for place, (name, scores) in enumerate({"baseline": baseline, "polyhead": model}.items()):
        label = "TF-IDF + logistic regression per head" if name == "baseline" else "one GPT-2 with three heads"
        bars = axes.bar(
            [x + 0.36 * (place - 0.5) for x in range(3)], list(scores.values()), 0.34, color=COLOURS[name], label=label
        )
        axes.bar_label(bars, [f"{score:.3f}" for score in scores.values()], fontsize=9)
    axes.set_xticks(range(3), list(model))
    axes.set(title="Debian texts, held-out test rows, trained from scratch", ylim=(0.5, 0.95))
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
