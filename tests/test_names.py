"""One name, one thing: classes, the spelling of head kinds, and the variables of the commands."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.test_arrows import FOLDERS, ROOT

# The client imports nothing of ours, so it spells the wire contract itself. Triton wants the other name.
SHARED_CLASSES = {"HeadKind", "TritonPythonModel"}
KINDS = {"single_label", "multi_label", "regression"}
WHERE_KINDS_STAND = {
    "classifier/polyhead/schema.py", "client/polyhead_client/schema.py", "rows/polyhead_rows/answers.py",
    "benchmarks/echo_model.py",  # it spells an answer as the wire has it
}  # fmt: skip
# What throws away work is said on the command line, where a person sees it.
DESTRUCTIVE = {"restart", "replace", "accept_config"}


def product_files() -> Iterator[Path]:
    """Every Python file but the tests."""
    for folder in FOLDERS.keys() - {"tests"}:
        for path in (ROOT / folder).rglob("*.py"):
            if "checkpoint" not in path.relative_to(ROOT).parts[:-1]:
                yield path


def test_a_class_name_belongs_to_one_place() -> None:
    """No public class is defined twice in the product."""
    places = defaultdict(list)
    for path in product_files():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    twice = {name: files for name, files in places.items() if len(files) > 1 and name not in SHARED_CLASSES}
    assert not twice


def test_head_kinds_are_spelled_where_they_are_defined() -> None:
    """Everywhere else the product uses the enumeration's members."""
    found = {
        str(path.relative_to(ROOT))
        for path in product_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in KINDS
    }
    assert found <= WHERE_KINDS_STAND


def commands() -> dict[str, Any]:
    """Every installed command by its name; each module keeps it as `app`."""
    found = {}
    for project in sorted(ROOT.glob("*/pyproject.toml")):
        scripts = tomllib.loads(project.read_text(encoding="utf-8"))["project"].get("scripts", {})
        for name, target in scripts.items():
            module = target.partition(":")[0]
            if name == "polyhead-client":  # its entry point names the missing extra before it imports the command
                module = "polyhead_client.command"
            found[name] = typer.main.get_command(importlib.import_module(module).app)
    return found


def variables(command: Any, prefix: str | None) -> Iterator[tuple[str, str]]:
    """The environment variables that a command reads, each with the name of its option."""
    prefix = command.context_settings.get("auto_envvar_prefix", prefix)
    for parameter in command.params:
        named = parameter.envvar or ()
        for variable in [named] if isinstance(named, str) else named:
            yield variable, str(parameter.name)
        if getattr(parameter, "allow_from_autoenv", False) and prefix:
            yield f"{prefix}_{parameter.name.upper()}", parameter.name
    for name, inner in getattr(command, "commands", {}).items():
        yield from variables(inner, prefix and f"{prefix}_{name.upper().replace('-', '_')}")


@pytest.mark.parametrize("name", commands())
def test_a_command_reads_variables_of_its_own(name: str) -> None:
    """Each option has a variable, and each variable begins with the command's name."""
    prefix = re.sub("^polyhead-", "POLYHEAD_", name).upper().replace("-", "_")
    found = list(variables(commands()[name], None))
    assert [variable for variable, _ in found if not variable.startswith(f"{prefix}_")] == []


def loadtest_variables() -> set[str]:
    """Those that the load test's options read; in a process of its own, because locust patches Python."""
    code = (
        "from locust.argument_parser import get_empty_argument_parser as parser;"
        "from loadtest.options import add_options;"
        "options = parser(); add_options(options);"
        "print(*(action.env_var for action in options._actions if getattr(action, 'env_var', None)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_no_two_commands_read_one_variable() -> None:
    """A variable that is set for one command changes no other one, nor the load test."""
    read = [{variable for variable, _ in variables(command, None)} for command in commands().values()]
    assert sum(map(len, read)) > 50
    read.append(loadtest_variables())
    counts = Counter(variable for one in read for variable in one)
    assert [variable for variable, count in counts.items() if count > 1] == []


def test_no_variable_throws_work_away() -> None:
    """`--restart` and `--replace` are said on the command line alone."""
    found = [variable for command in commands().values() for variable, option in variables(command, None)
             if option in DESTRUCTIVE]  # fmt: skip
    assert found == []
