"""The model card: ``README.md`` with the header that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2


def model_card(content: Mapping[str, Any]) -> str:
    """Markdown; nothing in names and labels is markup."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("polyhead_training.evaluation"), autoescape=False)
    environment.filters |= {"code": _code, "yaml_number": _yaml_number}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template("card.md").render(content) + "\n"


def _code(text: str) -> str:
    """A code span; where `text` cannot stand in one of a table, plain text without a character that means anything."""
    if not set("`|\n\r") & set(text):
        return f"`{text}`"
    return "".join(char if char.isalnum() or char == " " else f"&#{ord(char)};" for char in text)


def _yaml_number(value: float) -> str:
    """YAML 1.1 takes ``1e-05`` for a text."""
    text = repr(float(value))
    return text if "." in text else text.replace("e", ".0e")
