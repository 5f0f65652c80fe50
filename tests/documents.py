"""What README and docs say, for tests: their pages, links, headings and command lines."""

import re
import shlex
from pathlib import Path

TOP = Path(__file__).parents[1]
DOCS = TOP / "docs"

_FENCE = re.compile(r"^( *)```(\{?\w*\}?)[^\n]*\n(.*?)^\1```$", re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """README, CHANGELOG and every page of the documentation."""
    own = [path for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    return [TOP / "README.md", TOP / "CHANGELOG.md", *sorted(own)]


def prose_of(page: Path) -> str:
    """Text of a page without its code blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def links_of(page: Path) -> list[tuple[Path, str]]:
    """File and anchor (or "") of every link of a page into the repository."""
    found = []
    for link in _LINK.findall(prose_of(page)):
        if not re.match(r"\w+:", link):
            path, _, anchor = link.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


def anchors_of(page: Path) -> set[str]:
    """Anchors of a page's headings, made as GitHub and MyST make them."""
    titles = re.findall(r"^#+ +(.+)$", prose_of(page), re.M)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


def command_lines(page: Path) -> list[list[str]]:
    """Words of every command in the `bash` blocks of a page, in order, without comments."""
    lines = []
    for _, language, block in _FENCE.findall(page.read_text("utf-8")):
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                lines += [shlex.split(part, comments=True) for part in line.split(" && ")]
    return [words for words in lines if words]


def inline_commands(page: Path) -> list[list[str]]:
    """Words of every command with flags that stands within a sentence or a table."""
    found = re.findall(r"`(bonemet_\w+ [^`]*)`", prose_of(page))
    return [line.split() for line in found if " -" in line]
