"""``docs/config.md``, the reference of both config files. ``make reference`` writes it."""

from __future__ import annotations

import sys
from pathlib import Path

from polyhead.files import write_file
from polyhead_training.config import TrainingConfig
from polyhead_training.import_checkpoint import ImportConfig
from polyhead_training.reference import config_reference


def page() -> str:
    """``docs/config.md``."""
    return (
        "# Config reference\n\n"
        "All keys of the TOML files of `polyhead-train` and `polyhead-import`. `make reference` makes this page from\n"
        "the models that validate the files. The [training guide](training.md) explains how the keys are used, and\n"
        "[Files that Polyhead reads](files.md) how files are read. Relative paths are relative to the current folder.\n"
        "An unknown key is an error that names the nearest known one.\n\n"
        f"## polyhead-train CONFIG.toml\n\n{config_reference(TrainingConfig)}\n"
        f"## polyhead-import --config CONFIG.toml\n\n{config_reference(ImportConfig)}"
    )


if __name__ == "__main__":
    write_file(Path(sys.argv[1]), page())
