"""Low-rank adapters on the body through peft: added before training, merged into plain GPT-2 weights after it."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig as PeftConfig
from peft import LoraModel

from polyhead.errors import one_line
from polyhead_training.config import LoraConfig
from polyhead_training.errors import ConfigError


def add_adapters(model: Any, config: LoraConfig, freeze_layers: int = 0) -> LoraModel:
    """Puts adapters into ``model.body_model``, whose own weights then stay; the head is trained as before.

    Args:
        freeze_layers: this many blocks, from below, get none.

    Returns:
        What `merge_adapters` takes.

    Raises:
        ConfigError: no module of the body has one of the names.
    """
    peft_config = PeftConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        layers_to_transform=list(range(freeze_layers, model.config.n_layer)),
        layers_pattern="h",
        fan_in_fan_out=True,  # GPT-2's Conv1D keeps its weights as (in, out)
    )
    try:
        # The modules are replaced inside the body, so that the classifier goes on using it as its own.
        return LoraModel(model.body_model, peft_config, "default")
    except ValueError as error:
        raise ConfigError(f"lora.target_modules: {one_line(error)}") from error


def merge_adapters(model: Any, adapted: LoraModel) -> None:
    """Adds the adapters to the weights and takes them out: the keys are those of a plain GPT-2 again."""
    model.body_model = adapted.merge_and_unload(safe_merge=True)
