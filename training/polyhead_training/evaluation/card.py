"""The model card: ``README.md`` with the header that the Hugging Face hub reads."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import jinja2


def model_card(content: Mapping[str, Any]) -> str:
    """Markdown; names and labels stand in code spans, so that nothing in them is markup."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("polyhead_training.evaluation"), autoescape=False)
    environment.filters["code"] = _code
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template("card.md").render(content) + "\n"


def _code(text: str) -> str:
    if "`" in text or "|" in text:  # neither can stand in a code span of a table
        return html.escape(text).replace("|", "&#124;").replace("`", "&#96;")
    return f"`{text}`"
