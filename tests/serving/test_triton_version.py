"""Which versions of tritonserver are warned of, and where."""

from __future__ import annotations

import pytest

from polyhead_serving.triton_version import SAFE_VERSION, warn_of

SAFE = ".".join(map(str, SAFE_VERSION)) + ".0"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_an_old_server_on_loopback(address: str) -> None:
    """It is fine without the admin APIs; with them, the warning says that their key may not protect."""
    assert warn_of("2.51.0", address, "none") is None
    assert "POLYHEAD_ADMIN_KEY" in str(warn_of("2.51.0", address, "explicit"))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3", "a-host"])
def test_an_old_server_that_others_reach(address: str) -> None:
    """The warning names version and address."""
    assert f"tritonserver 2.51.0 is older than {SAFE[:-2]}" in str(warn_of("2.51.0", address, "none"))
    assert address in str(warn_of("2.51.0", address, "none"))


@pytest.mark.parametrize("version", [SAFE, "2.100.1", "3.0.0", "unknown"])
def test_newer_servers(version: str) -> None:
    """A newer one, and one whose version cannot be read, is not warned of."""
    assert warn_of(version, "0.0.0.0", "explicit") is None
