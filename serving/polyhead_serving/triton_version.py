"""Which tritonserver runs, and a warning if it is old and its ports are not for trusted programs only."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import urllib.request
from http.client import HTTPException

from polyhead_serving.triton import ServeOptions

log = logging.getLogger("polyhead_serving")

# Release 26.07. NVIDIA's bulletins of 2026 ask for it; older versions can be used without their key.
SAFE_VERSION = (2, 71)
TIMEOUT_S = 5.0


def log_version(http: str, options: ServeOptions) -> None:
    """Logs the version that the server reports, and warns of an old one that others may reach.

    Args:
        http: ``host:port`` of the server.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{http}/v2", timeout=TIMEOUT_S) as response:
            version = str(json.load(response)["version"])
    except (OSError, HTTPException, ValueError, LookupError) as error:
        log.warning("the server does not tell its version: %r", error)
        return
    log.info("tritonserver %s", version)
    if warning := warn_of(version, options.address, options.control):
        log.warning("%s", warning)


def warn_of(version: str, address: str, control: str) -> str | None:
    """What is dangerous about this version at this address, or None."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= SAFE_VERSION:
        return None
    newest = ".".join(map(str, SAFE_VERSION))
    old = f"tritonserver {version} is older than {newest} and has known security holes"
    if not is_loopback(address):
        return f"{old}: every program that reaches {address} can end it or worse; let only deploy/nginx reach its ports"
    if control == "explicit":
        return f"{old}: a program on this machine may get past POLYHEAD_ADMIN_KEY; use --control none among strangers"
    return None


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
