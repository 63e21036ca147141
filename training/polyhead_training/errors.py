"""Errors of training: each is one line that names the place; the exit code is 2, or 130 for an interrupted run.

TrainingError
├── ConfigError   the TOML file
│   └── DivergenceError   its learning rate, as training showed
├── DataError     files, columns, rows and labels
│   └── BadRowError   one row, which may be skipped
├── StorageError  a full disk
└── Interrupted   Ctrl-C or SIGTERM
"""

from __future__ import annotations

from polyhead.errors import PolyheadError


class TrainingError(PolyheadError):
    """Base class for errors that the user of the training package can fix."""


class ConfigError(TrainingError):
    """The TOML file is unreadable, or one of its fields is unknown, missing or out of range."""


class DivergenceError(ConfigError):
    """Training ended in numbers that are not finite."""


class DataError(TrainingError):
    """A data file, a column, a row or a label does not fit the config."""


class BadRowError(DataError):
    """A row cannot be used: it cannot be read, has no text, or a label cell does not fit its head."""


class StorageError(TrainingError):
    """No more can be written: the disk is full, or a quota or a limit is reached."""


class Interrupted(TrainingError):  # noqa: N818 -- the user asked for it
    """The run was stopped; it can continue from what it saved."""
