"""transformers' Trainer with a classifier and packed batches, on the CPU and, if there is one, a GPU."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from transformers import TrainingArguments

from polyhead_training.config import ModelConfig
from polyhead_training.fitting.arguments import precision_of
from polyhead_training.fitting.trainer import ClassifierTrainer
from polyhead_training.model.packing import collate
from tests.cuda.devices import GPU
from tests.training.configs import config_of
from tests.training.test_packing import CLASSES, build, rows


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_trainer_lowers_the_loss(device: str, tmp_path: Path) -> None:
    """In the precision that ``auto`` means, with Muon and dropout, thirty steps more than halve the loss."""
    precision = precision_of(config_of(tmp_path, ModelConfig(gpt2={"n_embd": 64})))
    assert precision == "bf16" or device == "cpu"
    model = build(CLASSES[0], n_embd=64, n_head=2)
    for block in model.body_model.h:
        block.attn.attn_dropout.p = 0.1
    arguments = TrainingArguments(
        output_dir=str(tmp_path), seed=0, max_steps=30, per_device_train_batch_size=8, learning_rate=3e-3,
        use_cpu=device == "cpu", bf16=precision == "bf16", save_strategy="no", logging_steps=1, report_to=[],
        disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=device == "cuda",
    )  # fmt: skip
    train = datasets.Dataset.from_list(rows([3, 9, 24, 1, 7, 7, 15, 2]))
    trainer = ClassifierTrainer(muon=True, model=model, args=arguments, data_collator=collate, train_dataset=train)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert next(model.parameters()).device.type == device
    assert losses[-1] < losses[0] / 2
    assert torch.isfinite(torch.tensor(losses)).all()
