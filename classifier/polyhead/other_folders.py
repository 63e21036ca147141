"""What a folder is that is taken for a checkpoint and is none, and what to do with it. Only for messages."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_BYTES = 16 << 20  # of a file that is looked into
MOST_ENTRIES = 1000  # of a folder
MOST_NAMED = 3
RESUME = "polyhead-train CONFIG.toml --resume finishes it and writes the checkpoint"
SEED_ARCHITECTURES = ("GPT2BaseForSequenceClassification", "GPT2HiddenStateConcatForSequenceClassification")


def what_it_is(path: Path) -> str | None:
    """What the folder or file is, and what to do, as the end of a message about `path`; None if it is not known."""
    try:
        path = path if path.name else path.absolute()
        return _unfinished(path) or _other_file(path) or _of_triton(path) or _of_transformers(path) or _above(path)
    except OSError:  # not readable
        return None


def _unfinished(path: Path) -> str | None:
    if _is_run(path.parent / f"{path.name}.training"):  # with_name would refuse /
        return f"is not written yet, because its training is not finished; {RESUME}"
    run = next((folder for folder in (path, *path.parents) if _is_run(folder)), None)
    return None if run is None else f"belongs to the unfinished training of {_output(run)}; {RESUME}"


def _is_run(folder: Path) -> bool:
    return folder.name.endswith(".training") and (folder / "run.json").is_file()


def _output(run: Path) -> Path:
    return run.with_name(run.name.removesuffix(".training"))


def _other_file(path: Path) -> str | None:
    if not path.is_file():
        return None
    if (path.parent / "config.json").is_file():
        return f"is a file; name its folder, {path.parent}"
    return "is a file; a checkpoint is a folder"


def _of_triton(path: Path) -> str | None:
    found = [*path.glob("checkpoint/config.json"), *path.glob("[0-9]*/checkpoint/config.json")]
    found += path.glob("*/[0-9]*/checkpoint/config.json")
    if found:
        kind = "version of a model" if len(found[0].relative_to(path).parts) == 2 else "model repository"
        return f"is a {kind} for Triton; its checkpoint is {_named(place.parent for place in found)}"
    if (path / "config.pbtxt").is_file():
        return "is a model for Triton without a checkpoint; polyhead-export puts one into it"
    return None


def _of_transformers(path: Path) -> str | None:
    if (path / "adapter_config.json").is_file():
        return "holds adapters only; merge them into their model, and train heads on it: pretrained in [model]"
    if (path / "trainer_state.json").is_file() and not (path / "config.json").is_file():
        return "is a saved step of a training run"
    config = _object(path / "config.json")
    if config is None or "polyhead" in config:
        return None
    architectures = config.get("architectures")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    if any(name in SEED_ARCHITECTURES for name in names) or _has_body_model(path / "model.safetensors"):
        return f"is a checkpoint of that_nlp_library; polyhead-import {path} --config import.toml converts it"
    kind = config.get("model_type")
    if kind not in (None, "gpt2"):
        return f"is a model of transformers of type {str(kind)[:50]!r}; Polyhead serves GPT-2 classifiers only"
    if kind == "gpt2" or any(name.startswith("GPT2") for name in names):
        what = f"a {names[0][:80]} of transformers" if names else "a GPT-2 of transformers"
        return f'is {what}, without heads that can be served; train them on it: pretrained = "{path}" in [model]'
    return None


def _above(path: Path) -> str | None:
    """A folder with checkpoints in it, or with a report."""
    if (path / "predictions.parquet").is_file() and (path / "index.html").is_file():
        return "is a report, not a checkpoint"
    inner = sorted(entry.name for entry in _entries(path))
    below = [path / name for name in inner if "polyhead" in (_object(path / name / "config.json") or {})]
    if below:
        return f"is not a checkpoint, but holds {_named(below)}; name one"
    runs = [path / name for name in inner if _is_run(path / name)]
    return f"holds the unfinished training of {_named(map(_output, runs))}; {RESUME}" if runs else None


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    if path.is_dir():
        with os.scandir(path) as entries:
            yield from (entry for _, entry in zip(range(MOST_ENTRIES), entries, strict=False))


def _object(path: Path) -> Mapping[str, Any] | None:
    """The content of a small JSON file if it is an object."""
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _has_body_model(weights: Path) -> bool:
    """Whether a safetensors file names a tensor as that_nlp_library does. Only the file's header is read."""
    if not weights.is_file():
        return False
    with weights.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return size <= MOST_BYTES and b'"body_model.' in file.read(size)


def _named(paths: Iterator[Path] | list[Path]) -> str:
    shown = sorted(map(str, paths))
    more = f" and {len(shown) - MOST_NAMED} more" if len(shown) > MOST_NAMED else ""
    return ", ".join(shown[:MOST_NAMED]) + more
