"""The web application around the page, and its server: who may connect, and what a browser may load."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyhead_client.ui.asking import Side, TextOrFields
from polyhead_client.ui.page import CSS, THEME, build_page
from polyhead_client.ui.start import is_loopback
from polyhead_client.ui.texts import MOST_BYTES

# A browser loads nothing from elsewhere. Gradio's page has inline scripts and styles, and compiles its templates.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
NO_DOCS = {"docs_url": None, "redoc_url": None, "openapi_url": None}
END_S = 2  # for open connections after Ctrl-C


class Guard:
    """Adds the headers. On loopback it also refuses requests of foreign pages that are open in the same browser.

    Such a page says where it is from (Origin), or lets its own name lead to 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, only_loopback: bool) -> None:
        self.app = app
        self.only_loopback = only_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self.only_loopback and not is_own(headers.get("host", ""), headers.get("origin")):
            await PlainTextResponse("this page has another address", 400)(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, answer)


def is_own(host: str, origin: str | None) -> bool:
    """Whether a request comes from this page: it names a loopback address, and no other page sent it."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return is_loopback(name) and (origin is None or urlsplit(origin).netloc == host)
    except ValueError:
        return False


class PageServer(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and calls `ready`."""
        await super().startup(sockets)
        if self.started:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends without a word about pages that are still open."""
        logging.getLogger("uvicorn.error").disabled = True
        await super().shutdown(sockets)


def run(
    sides: Sequence[Side],
    examples: Sequence[TextOrFields],
    host: str,
    listening: socket.socket,
    ready: Callable[[str], None],
) -> None:
    """Serves the page; see `polyhead_client.ui.start.start`."""
    port = listening.getsockname()[1]
    app = gr.mount_gradio_app(
        FastAPI(**NO_DOCS),  # type: ignore[arg-type]
        build_page(sides, examples),
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        app_kwargs=dict(NO_DOCS),
        show_error=False,  # an unknown error says nothing about this machine
        max_file_size=MOST_BYTES + 1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
        css_paths=[CSS],
    )
    config = uvicorn.Config(
        Guard(app, only_loopback=is_loopback(host)),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=END_S,
    )
    shown = f"[{host}]" if ":" in host else host
    PageServer(config, lambda: ready(f"http://{shown}:{port}/")).run([listening])
