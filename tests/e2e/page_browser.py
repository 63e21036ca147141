"""The headless browser on a live page: keys and clicks as a person does them, and every address that it asks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.training.browser import Browser

KEYS = {
    "Tab": (9, ""), "Enter": (13, "\r"), "ArrowRight": (39, ""), "ArrowLeft": (37, ""), "ArrowDown": (40, ""),
    "Escape": (27, ""), " ": (32, " "), "Home": (36, ""),
}  # fmt: skip
WAIT_S = 30


class PageBrowser(Browser):
    """One page.

    Attributes:
        asked: the address of each request that the page made.
        said: errors of the page's scripts, and what it wrote to the console as an error.
    """

    def __init__(self, scratch: Path) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        super().__init__(scratch)
        self.call("Network.enable")
        self.call("Runtime.enable")
        self.call("DOM.enable")

    def visit(self, address: str, width: int, height: int = 900, scheme: str = "light") -> None:
        """Opens an address in a window of this size, in CSS pixels, and waits until the page has been built."""
        self.resize(width, height)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=address)
        self.wait_for("document.querySelector('#ph-classify, .ph-error')")

    def resize(self, width: int, height: int = 900) -> None:
        """Gives the window this size; a narrow one is that of a telephone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def wait_for(self, condition: str, wait_s: float = WAIT_S) -> None:
        """Waits until a JavaScript expression is true."""
        until = time.monotonic() + wait_s
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < until, (condition, self.text("body"), self.said)
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """What a person reads there."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def press(self, key: str, times: int = 1) -> None:
        """Presses a key."""
        code, text = KEYS[key]
        for _ in range(times):
            down = {"type": "keyDown" if text else "rawKeyDown", "key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", **down, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", **down | {"type": "keyUp"})

    def tab_to(self, selector: str) -> None:
        """Presses Tab until the focus is there."""
        for _ in range(60):
            self.press("Tab")
            if self.evaluate(f"Boolean(document.activeElement?.matches({json.dumps(selector)}))"):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    def type(self, text: str) -> None:
        """Types a text where the focus is, instead of what is there."""
        self.evaluate("document.activeElement.select()")
        self.call("Input.insertText", text=text)

    def write(self, selector: str, text: str) -> None:
        """Types a text into a field."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.wait_for(f"({field}?.focus(), document.activeElement === {field})")
        self.type(text)

    def click(self, selector: str) -> None:
        """Clicks there with the mouse, as soon as the element stands still and nothing covers it."""
        self.wait_for(f"document.querySelector({json.dumps(selector)})?.checkVisibility()")
        until, before = time.monotonic() + WAIT_S, None
        while (place := self._place(selector)) is None or place != before:
            assert time.monotonic() < until, (selector, place, self.text("body"))
            before = place
            time.sleep(0.1)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def _place(self, selector: str) -> list[float] | None:
        """The middle of an element in the window; None if another one is on top there."""
        place: list[float] | None = self.evaluate(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "one?.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = one?.getBoundingClientRect();"
            "const at = one && [box.x + box.width / 2, box.y + box.height / 2];"
            "return one && one.contains(document.elementFromPoint(...at)) ? at : null })()"
        )
        return place

    def upload(self, selector: str, path: Path) -> None:
        """Chooses a file in an input."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def _message(self) -> dict[str, Any]:
        found = super()._message()
        parameters = found.get("params", {})
        match found.get("method"):
            case "Network.requestWillBeSent":
                self.asked.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.said.append(str(parameters["exceptionDetails"].get("exception", parameters))[:300])
            case "Runtime.consoleAPICalled" if parameters["type"] == "error":
                self.said.append(str([one.get("value", one.get("description")) for one in parameters["args"]])[:300])
        return found
