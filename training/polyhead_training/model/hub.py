"""Pretrained weights and data sets of the Hugging Face hub: mistakes and a missing network are found within seconds.

Without a network, the hub's own libraries try again for more than a minute. So the hub is asked once before them; if it
does not answer, they read their caches only. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from polyhead.errors import one_line
from polyhead_training.errors import ConfigError

ANSWER_S = 5.0  # how long the hub may take to answer; looking up its name may take as long again
REMEMBERED_S = 60.0  # a run needs to know several times, and a notebook may get its network back
OFF = "the hub is switched off by HF_HUB_OFFLINE or a variable like it"
TO_SAFETENSORS = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file({k: v.clone() for k, v in torch.load('pytorch_model.bin', weights_only=True).items()}, "
    "'model.safetensors')\""
)
MOST_CONFIG_BYTES = 32 << 20

_remembered: dict[str, tuple[float, str | None]] = {}
"""By address, when the hub was asked, and why it could not be reached."""


def why_unreachable() -> str | None:
    """Why the hub cannot be asked; None if it answers, whatever the answer is. It is asked at most once a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return OFF
    asked_at, reason = _remembered.get(constants.ENDPOINT, (-math.inf, None))
    if time.monotonic() - asked_at > REMEMBERED_S:
        reason = _ask(constants.ENDPOINT)
        _remembered[constants.ENDPOINT] = time.monotonic(), reason
    return None if reason is None else f"the Hugging Face hub ({constants.ENDPOINT}) cannot be reached ({reason})"


def _ask(address: str) -> str | None:
    """Why the address does not answer; None if it does."""
    from huggingface_hub import get_session

    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=ANSWER_S)
        except Exception as error:  # each HTTP library has its own kinds
            answers.append(one_line(error))
        else:
            answers.append(None)

    # A thread, because no timeout ends the look-up of a name.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * ANSWER_S)
    return answers[0] if answers else f"no answer within {2 * ANSWER_S:g} s"


@contextmanager
def hub_access(name: str) -> Iterator[str | None]:
    """Gives why a data set cannot be asked for. In this block, its libraries then do not try to reach the hub."""
    import datasets
    from huggingface_hub import constants

    unreachable = None if Path(name).exists() else why_unreachable()
    if datasets.config.HF_HUB_OFFLINE:
        unreachable = OFF
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if unreachable is not None:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        yield unreachable
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def check_pretrained(name: str) -> bool:
    """Checks that `model.pretrained` is a folder of a GPT-2, or a name that can be loaded.

    Returns:
        Whether only this machine may be asked for its files.

    Raises:
        ConfigError: it is neither; it says what to do.
    """
    place, path = f"model.pretrained {name!r}", Path(name)
    if path.is_dir():
        _check_folder(place, path)
        return True
    if path.exists():
        raise ConfigError(f"{place}: is a file; name its folder")
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or not name:
        place += "" if path.is_absolute() or name.startswith("~") else f" in {Path.cwd()}"
        raise ConfigError(f"{place}: no such folder{'; ~ is not replaced here' if name.startswith('~') else ''}")
    unreachable = why_unreachable()
    if unreachable is not None and not _is_cached(name):
        raise ConfigError(
            f"{place}: there is no such folder in {Path.cwd()} and nothing in the hub's cache, and {unreachable}. "
            f"Download it where there is a network (hf download {name} --local-dir {path.name}), and name that folder"
        )
    return unreachable is not None


def refuse_pickle(folder: Path) -> None:
    """Raises ConfigError, with the command that converts it, if the folder has weights only as a pickle."""
    if (folder / "pytorch_model.bin").is_file() and not next(folder.glob("model*.safetensors"), None):
        raise ConfigError(
            f"{folder / 'pytorch_model.bin'}: is a pickle, which is not read; if you trust it, convert it to "
            f"model.safetensors in that folder: {TO_SAFETENSORS}"
        )


def _check_folder(place: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        adapter = "; it holds adapters, which must be merged into their model first"
        hint = adapter if (folder / "adapter_config.json").is_file() else ""
        raise ConfigError(f"{place}: has no config.json; model.safetensors and a tokenizer are needed too{hint}")
    refuse_pickle(folder)
    if next(folder.glob("model*.safetensors"), None) is None:
        raise ConfigError(f"{place}: has no model.safetensors")
    kind = _config(folder / "config.json").get("model_type", "gpt2")
    if kind != "gpt2":
        raise ConfigError(f"{place}: is a model of type {kind!r}; only GPT-2 can be trained")


def _config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MOST_CONFIG_BYTES))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({one_line(error)})") from error
    return content if isinstance(content, dict) else {}


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # no name of the hub
        return False
