"""deploy/nginx/render: what it refuses, and who can read what it writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from loadtest.local_server import ROOT
from tests.e2e.proxied import KEY


def render(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs render in a folder with a key file."""
    keys = folder / "keys"
    if not keys.exists():
        keys.write_text(f"tests {KEY}\n", encoding="utf-8")
        keys.chmod(0o600)
    given = {"CERTIFICATE": "c", "CERTIFICATE_KEY": "k", "KEYS_FILE": str(keys), "RUN": str(folder / "run")} | variables
    command = ["sh", "-c", 'umask 022; exec "$0" "$@"', str(ROOT / "deploy" / "nginx" / "render"), *arguments]
    return subprocess.run(command, cwd=folder, env={**os.environ, **given}, capture_output=True, text=True, check=False)


def test_the_configuration_holds_no_key_and_is_private(tmp_path: Path) -> None:
    """Nobody else can read the file that render writes, even over an older one, and no key is in it."""
    target = tmp_path / "nginx.conf"
    target.write_text("old", encoding="utf-8")
    target.chmod(0o644)
    (tmp_path / "nginx.conf.new").write_text("older", encoding="utf-8")
    assert render(tmp_path, "nginx.conf").returncode == 0
    assert target.stat().st_mode & 0o777 == 0o600
    assert KEY not in target.read_text(encoding="utf-8")
    assert not (tmp_path / "nginx.conf.new").exists()
    assert render(tmp_path).stdout == target.read_text(encoding="utf-8")


def test_a_failed_render_keeps_the_last_configuration(tmp_path: Path) -> None:
    """A wrong setting ends with a reason and changes no file."""
    (tmp_path / "nginx.conf").write_text("old", encoding="utf-8")
    done = render(tmp_path, "nginx.conf", ORIGINS="nonsense")
    assert (done.returncode, (tmp_path / "nginx.conf").read_text(encoding="utf-8")) == (2, "old")
    assert "ORIGINS" in done.stderr


@pytest.mark.parametrize("name", ["keys", "k"])
def test_secrets_that_everyone_can_read_are_refused(tmp_path: Path, name: str) -> None:
    """render names the file and the command that helps; a link to it does not hide it."""
    render(tmp_path)
    (tmp_path / name).touch()
    (tmp_path / name).chmod(0o644)
    (tmp_path / "link").symlink_to(tmp_path / name)
    for variables in ({}, {"KEYS_FILE" if name == "keys" else "CERTIFICATE_KEY": str(tmp_path / "link")}):
        done = render(tmp_path, **variables)
        assert (done.returncode, done.stdout) == (2, "")
        assert "chmod 600" in done.stderr
    (tmp_path / name).chmod(0o640)
    assert render(tmp_path).returncode == 0


def test_a_folder_that_another_user_made_is_refused(tmp_path: Path) -> None:
    """Whoever makes RUN first in /tmp could read bodies, or lead nginx to other files with a link."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "theirs")
    assert "RUN" in render(tmp_path).stderr
    if os.geteuid() == 0:
        os.chown(tmp_path / "theirs", 65534, 65534)
        done = render(tmp_path, RUN=str(tmp_path / "theirs"))
        assert (done.returncode, "another user" in done.stderr) == (2, True)


def test_a_key_file_that_everyone_can_write_is_refused(tmp_path: Path) -> None:
    """Else everyone could give themselves a key, also if nobody can read the others."""
    render(tmp_path)
    (tmp_path / "keys").chmod(0o602)
    done = render(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "chmod 600" in done.stderr


def test_the_folder_above_belongs_to_oneself_or_root(tmp_path: Path) -> None:
    """Its owner could put another folder in the place of RUN."""
    if os.geteuid() != 0:
        pytest.skip("giving a folder away needs root")
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    done = render(tmp_path, RUN=str(tmp_path / "theirs" / "run"))
    assert (done.returncode, "the folder above belongs to another user" in done.stderr) == (2, True)


def test_a_link_that_is_planted_for_the_new_file_is_not_followed(tmp_path: Path) -> None:
    """In a folder of several users, somebody may put a link where the configuration is written."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "victim").write_text("theirs", encoding="utf-8")
    # Plants the link right after render has removed what was there.
    remove = tmp_path / "bin" / "rm"
    remove.write_text('#!/bin/sh\n/bin/rm "$@"\n/bin/ln -s "$PWD/victim" "$PWD/nginx.conf.new"\n', encoding="utf-8")
    remove.chmod(0o755)
    done = render(tmp_path, "nginx.conf", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert done.returncode != 0
    assert (tmp_path / "victim").read_text(encoding="utf-8") == "theirs"
    assert not (tmp_path / "nginx.conf").exists()


@pytest.mark.parametrize(
    ("keys", "reason"), [("short\n", "line 1"), ("# x\nname tooshort\n", "line 2"), ("# nobody\n", "holds no key")]
)
def test_a_bad_key_file_is_refused(tmp_path: Path, keys: str, reason: str) -> None:
    """A wrong key file, which would let in nobody or anybody, is refused."""
    (tmp_path / "keys").touch(0o600)
    (tmp_path / "keys").write_text(keys, encoding="utf-8")
    done = render(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
