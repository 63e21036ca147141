"""Training speed: real tokens/s of padding-free training, and of transformers' Trainer with padded batches.

All train the same model from the same weights on the same Debian texts, without dropout, in fp32 and in bf16.
``trainer`` is what one writes without this project: a plain GPT2Model with the same heads and loss, padded by the
default collator. It gets the rows in our order and must end at our validation loss; otherwise the run fails.
``trainer_tuned`` adds batches sorted by length (which is another order) and GELU in one kernel. All have fused AdamW.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from benchmarks.result import RESULTS, write_result
from polyhead.checkpoint import Spec
from polyhead.encode import encode
from polyhead.schema import HeadKind, Schema
from polyhead_training.config import DataConfig, HeadConfig
from polyhead_training.data.corpus import Corpus, read_corpus
from polyhead_training.fitting.trainer import ClassifierTrainer
from polyhead_training.model.losses import LossTerm, classification_loss
from polyhead_training.model.modeling import MultiHeadClassifier, build_model
from polyhead_training.model.packing import collate
from polyhead_training.model.tokenizer import END_OF_TEXT, train_tokenizer

HEADS = [
    HeadConfig(name="section", kind=HeadKind.SINGLE_LABEL),
    HeadConfig(name="role", kind=HeadKind.SINGLE_LABEL),
    HeadConfig(name="tags", kind=HeadKind.MULTI_LABEL, weight=20.0),
]
PRECISIONS = ("fp32", "bf16")
VALIDATION_ROWS = 256
LOSS_TOLERANCE = 0.01
COLOURS = {"polyhead": "#2a6fbb", "trainer": "#c8553d", "trainer_tuned": "#e0a458"}


class PlainClassifier(nn.Module):
    """What one writes without this project: a GPT2Model, its state at the last real token, a linear layer."""

    def __init__(self, config: GPT2Config, terms: list[LossTerm]) -> None:
        super().__init__()
        self.body_model = GPT2Model(config)
        self.head = nn.Linear(config.n_embd, sum(term.width for term in terms), bias=False)
        self.terms = terms

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Loss and logits of a batch padded on the right."""
        states = self.body_model(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        pooled = states[torch.arange(len(states)), attention_mask.sum(1) - 1]
        logits = self.head(pooled)
        return {"loss": classification_loss(logits, labels, self.terms), "logits": logits}


@dataclass(frozen=True)
class Shape:
    """A model's size, and how much it is trained: `rows` training examples per run, `repeats` runs of each peer."""

    layers: int
    channels: int
    rows: int
    repeats: int

    @classmethod
    def read(cls, text: str) -> Shape:
        """From ``LAYERSxCHANNELS:ROWS:REPEATS``."""
        return cls(*(int(part) for part in text.replace("x", ":").split(":")))

    def __str__(self) -> str:
        return f"{self.layers}x{self.channels}"


@dataclass(frozen=True)
class BenchmarkInputs:
    """Texts as token ids and labels, and everything that is needed to build a peer."""

    schema: Schema
    tokenizer: Tokenizer
    config: GPT2Config
    spec: Spec
    train: datasets.Dataset
    validation: datasets.Dataset


def main(options: Sequence[str] | None = None) -> None:
    """Runs all peers at each length, in turns, and prints one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/debian"), help="folder of polyhead-dataset debian")
    parser.add_argument("--out", type=Path, default=RESULTS / "training.json")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--shapes", type=Shape.read, nargs="+", metavar="LAYERSxCHANNELS:ROWS:REPEATS",
        default=[Shape(4, 256, 512, 3), Shape(12, 768, 64, 1)], help="ROWS is the number of training examples per run",
    )  # fmt: skip
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    arguments = parser.parse_args(options)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as scratch:
        corpus = _corpus(arguments.data, Path(scratch))
        tokenizer = train_tokenizer(corpus.train.texts, 8000)
        runs = {
            f"{shape} {precision} {length}": _measure(corpus, tokenizer, shape, precision, length, arguments, scratch)
            for shape in arguments.shapes
            for length in arguments.lengths
            for precision in arguments.precisions
        }
    summary = {
        f"{name} over {peer}": round(peers["polyhead"]["tok_s"] / peers[peer]["tok_s"], 2)
        for name, peers in runs.items()
        for peer in ("trainer_tuned", "trainer")
    }
    shapes = [asdict(shape) for shape in arguments.shapes]
    settings = {"shapes": shapes, "batch_size": arguments.batch_size, "vocab_size": 8000}
    write_result(
        arguments.out, {"ratios": summary, "settings": settings, "device": arguments.device, "runs": runs}, _plot(runs)
    )
    print(json.dumps(summary))


def _corpus(data: Path, scratch: Path) -> Corpus:
    files = {split: str(data / f"{split}.jsonl") for split in ("train", "validation")}
    return read_corpus(DataConfig(**files), HEADS, scratch)


def _measure(
    corpus: Corpus,
    tokenizer: Tokenizer,
    shape: Shape,
    precision: str,
    length: int,
    arguments: argparse.Namespace,
    scratch: str,
) -> dict[str, dict[str, Any]]:
    prepared = _prepare(corpus, tokenizer, length, shape)
    padding = _padding(prepared)
    run_once = partial(_train, prepared=prepared, arguments=arguments, scratch=scratch, precision=precision)
    peers: dict[str, Callable[..., dict[str, Any]]] = {
        "polyhead": partial(run_once, ClassifierTrainer, lambda: _ours(prepared), collate),
        "trainer": partial(run_once, Trainer, lambda: _plain(prepared), padding),
        "trainer_tuned": partial(
            run_once, Trainer, lambda: _plain(prepared, "gelu_pytorch_tanh"), padding, by_length=True
        ),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    if shape == arguments.shapes[0]:  # the first steps of a process are slow
        for run in peers.values():
            run(rows=2 * arguments.batch_size)
    name = f"{shape}, {precision}, max_length {length}"
    for repeat in range(shape.repeats):
        for peer, run in peers.items():
            runs[peer].append(run(rows=shape.rows))
            print(f"{name}, repeat {repeat + 1}, {peer}: {runs[peer][-1]}", flush=True)
    ours, theirs = (runs[peer][0]["validation_loss"] for peer in ("polyhead", "trainer"))
    if abs(ours - theirs) > LOSS_TOLERANCE * theirs:
        raise SystemExit(f"{name}: validation losses differ, {ours} and {theirs}")
    return {
        peer: {
            "tok_s": round(statistics.median(run["tok_s"] for run in results), 1),
            "tok_s_all": [run["tok_s"] for run in results],
            "validation_loss": results[0]["validation_loss"],
            "real_tokens": results[0]["real_tokens"],
        }
        for peer, results in runs.items()
    }


def _prepare(corpus: Corpus, tokenizer: Tokenizer, length: int, shape: Shape) -> BenchmarkInputs:
    end = tokenizer.token_to_id(END_OF_TEXT)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=length, n_layer=shape.layers, n_embd=shape.channels,
        n_head=shape.channels // 64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    spec = Spec(architecture="base", layer2concat=None, head_class="Linear", head_args={}, max_length=length)
    drawn = np.random.default_rng(0).permutation(len(corpus.train))[: shape.rows].tolist()
    return BenchmarkInputs(
        corpus.schema,
        tokenizer,
        config,
        spec,
        _columns([corpus.train.texts[i] for i in drawn], corpus.train.labels[drawn], tokenizer, length),
        _columns(
            list(corpus.validation.texts[:VALIDATION_ROWS]),
            corpus.validation.labels[:VALIDATION_ROWS],
            tokenizer,
            length,
        ),
    )


def _columns(texts: list[str], labels: Any, tokenizer: Tokenizer, length: int) -> datasets.Dataset:
    ids = [list(text.token_ids) for text in encode(texts, tokenizer, length)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels, "length": [len(row) for row in ids]})


def _ours(prepared: BenchmarkInputs) -> MultiHeadClassifier:
    set_seed(0)
    return build_model(prepared.config, prepared.spec, prepared.schema)


def _plain(prepared: BenchmarkInputs, activation: str = "gelu_new") -> PlainClassifier:
    ours = _ours(prepared)
    plain = PlainClassifier(GPT2Config(**prepared.config.to_dict() | {"activation_function": activation}), ours.terms)
    plain.load_state_dict(ours.state_dict())
    return plain


def _padding(prepared: BenchmarkInputs) -> Callable[[list[dict[str, Any]]], Any]:
    pad = DataCollatorWithPadding(PreTrainedTokenizerFast(tokenizer_object=prepared.tokenizer, pad_token=END_OF_TEXT))
    return lambda rows: pad([{key: row[key] for key in ("input_ids", "labels")} for row in rows])


def _train(
    trainer_class: type[Trainer],
    build: Callable[[], MultiHeadClassifier | PlainClassifier],
    collator: Callable[[list[dict[str, Any]]], Any],
    *,
    prepared: BenchmarkInputs,
    arguments: argparse.Namespace,
    scratch: str,
    precision: str,
    rows: int,
    by_length: bool = False,
) -> dict[str, Any]:
    train = prepared.train.select(range(min(rows, len(prepared.train))))
    if by_length:  # transformers' group_by_length sorts within 50 batches; so few rows it would hardly sort at all
        train = _batches_by_length(train, arguments.batch_size)
    model = build()
    trainer = trainer_class(
        model=model,
        args=TrainingArguments(
            output_dir=scratch, seed=0, num_train_epochs=1, per_device_train_batch_size=arguments.batch_size,
            learning_rate=1e-3, train_sampling_strategy="sequential" if by_length else "random",
            use_cpu=arguments.device == "cpu", bf16=precision == "bf16", optim="adamw_torch_fused",
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        data_collator=collator,
        train_dataset=train,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    seconds = trainer.train().metrics["train_runtime"]
    tokens = sum(train["length"])
    return {
        "tok_s": round(tokens / seconds, 1),
        "real_tokens": tokens,
        "validation_loss": _validation_loss(model, prepared, collator),
    }


def _batches_by_length(rows: datasets.Dataset, batch_size: int) -> datasets.Dataset:
    """The rows, all sorted by length and cut into batches, which are in random order."""
    order = np.argsort(rows["length"], kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mixed = np.random.default_rng(0).permutation(len(batches))
    return rows.select(np.concatenate([batches[place] for place in mixed]))


@torch.inference_mode()
def _validation_loss(
    model: MultiHeadClassifier | PlainClassifier,
    prepared: BenchmarkInputs,
    collator: Callable[[list[dict[str, Any]]], Any],
) -> float:
    model.eval()
    device = next(model.parameters()).device
    logits, labels = [], []
    for start in range(0, len(prepared.validation), 32):
        rows = [prepared.validation[i] for i in range(start, min(start + 32, len(prepared.validation)))]
        batch = {name: tensor.to(device) for name, tensor in collator(rows).items()}
        logits.append(model(**batch)["logits"])
        labels.append(batch["labels"])
    return float(classification_loss(torch.cat(logits), torch.cat(labels), model.terms))


def _plot(runs: dict[str, dict[str, dict[str, Any]]]) -> Figure:
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    for place, (peer, colour) in enumerate(COLOURS.items()):
        shares = [peers[peer]["tok_s"] / peers["trainer_tuned"]["tok_s"] for peers in runs.values()]
        bars = axes.bar([x + 0.27 * (place - 1) for x in range(len(runs))], shares, 0.25, color=colour, label=peer)
        axes.bar_label(bars, [f"{peers[peer]['tok_s']:,.0f}" for peers in runs.values()], fontsize=7)
    axes.set_xticks(range(len(runs)), [name.replace(" ", "\n") for name in runs])
    axes.set(title="Training on Debian texts: real tokens/s", ylabel="speed beside trainer_tuned")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
