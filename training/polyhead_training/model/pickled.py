"""Weights in a pickle, which is never loaded: what to do where there are no others."""

from __future__ import annotations

from pathlib import Path

from polyhead_training.errors import ConfigError

TO_SAFETENSORS = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file({k: v.clone() for k, v in torch.load('pytorch_model.bin', weights_only=True).items()}, "
    "'model.safetensors')\""
)


def refuse_pickle(folder: Path) -> None:
    """Raises ConfigError, with the command that converts it, if the folder's weights are a pickle alone."""
    if (folder / "pytorch_model.bin").is_file() and not next(folder.glob("model*.safetensors"), None):
        raise ConfigError(
            f"{folder / 'pytorch_model.bin'}: is a pickle, which is not read; where you trust it, convert it to "
            f"model.safetensors in that folder: {TO_SAFETENSORS}"
        )
