"""The load test's options and environment variables, and the tolerance."""

from __future__ import annotations

import json
from typing import Any

import configargparse
import pytest

from loadtest.options import add_options
from loadtest.run import choose_tolerance
from polyhead_client import ModelSchema
from tests.client.fake_triton import SCHEMA


def test_variables_have_their_own_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option has a variable that no other command reads; an option on the command line wins over it."""
    parser: Any = configargparse.ArgumentParser()
    add_options(parser)
    variables = {action.env_var for action in parser._actions if getattr(action, "env_var", None)}
    assert len(variables) == 16
    assert all(name.startswith("LOCUST_POLYHEAD_") for name in variables)
    monkeypatch.setenv("LOCUST_POLYHEAD_REQUEST_TIMEOUT_S", "4")
    monkeypatch.setenv("LOCUST_POLYHEAD_RATE", "5")
    monkeypatch.setenv("POLYHEAD_MODEL", "another command's")
    options = parser.parse_args(["--rate", "7"])
    assert (options.request_timeout_s, options.rate, options.model) == (4.0, 7.0, "gpt2_classifier")


def test_tolerance_is_the_servers_unless_asked_for() -> None:
    """The option wins; else the server's schema states it; else it is the default. The reason says which."""
    schema = ModelSchema.from_json(json.dumps({**SCHEMA, "precision": "bf16", "tolerance": 0.03}))
    assert choose_tolerance(0.5, schema) == (0.5, "--tolerance")
    assert choose_tolerance(None, schema) == (0.03, "the server's schema states it for bf16")
    silent = ModelSchema.from_json(json.dumps(SCHEMA))
    tolerance, reason = choose_tolerance(None, silent)
    assert tolerance == 0.001
    assert "right for fp32 only; the server states no precision and states no tolerance" in reason
    unsure = ModelSchema.from_json(json.dumps({**SCHEMA, "precision": "bf16"}))
    assert "the server serves bf16, but states no tolerance" in choose_tolerance(None, unsure)[1]
