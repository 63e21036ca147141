"""polyhead-serve's options as its command line reads them."""

from __future__ import annotations

import typer

from polyhead_serving import serve
from polyhead_serving.triton import ServeOptions


def parse(*arguments: str) -> ServeOptions:
    """The options after these arguments, in this process's environment."""
    context = typer.main.get_command(serve.app).make_context("polyhead-serve", list(arguments))
    return ServeOptions(**context.params)
