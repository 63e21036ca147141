"""A part of a config file: unknown keys are errors that name the nearest known one. Reading a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from polyhead.errors import describe
from polyhead_training.config_keys import hint, sections
from polyhead_training.errors import ConfigError

_Config = TypeVar("_Config", bound=BaseModel)


class Section(BaseModel):
    """A part of a TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _know_fields(cls, fields: Any, info: ValidationInfo) -> Any:
        if isinstance(fields, dict) and (unknown := [name for name in fields if name not in cls.model_fields]):
            meant = hint(unknown[0], cls, dict(sections((info.context or {}).get("file", cls))))
            raise ValueError(f"unknown field {unknown[0]!r}{meant}; allowed are {', '.join(cls.model_fields)}")
        return fields


def read_toml(path: Path, kind: type[_Config]) -> _Config:
    """Reads and validates a TOML file.

    Raises:
        ConfigError: names the file, the field, the value and what is allowed.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        place = "" if path.is_absolute() else f"; paths are relative to {Path.cwd()}"
        raise ConfigError(f"{path}: no such file{place}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML ({error})") from error
    return validated(fields, kind, str(path))


def validated(fields: Any, kind: type[_Config], place: str) -> _Config:
    """Validates the fields of a config.

    Raises:
        ConfigError: begins with `place` and names the field, the value and what is allowed.
    """
    try:
        return kind.model_validate(fields, context={"file": kind})
    except ValidationError as error:
        raise ConfigError(f"{place}: {' '.join(describe(error).split())}") from error
