"""Every relative link in a Markdown file leads to a file that exists and, if it names one, to a heading in it."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

from tests.test_arrows import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"[a-z]+:|\{\{")  # a URL, or a template's variable


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings: a repeated heading gets a number."""
    found: Counter[str] = Counter()
    for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE):
        words = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)
        found[re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")] += 1
    return {f"{name}-{number}" if number else name for name, count in found.items() for number in range(count)}


def test_links_lead_somewhere() -> None:
    """Tracked and new pages; links to other sites are not followed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    pages = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    broken = []
    for page in (ROOT / name for name in pages if (ROOT / name).exists()):
        for link in LINK.findall(prose(page)):
            if ELSEWHERE.match(link):
                continue
            place, _, anchor = link.partition("#")
            target = page.parent / place if place else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken
