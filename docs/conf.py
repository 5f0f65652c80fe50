"""Sphinx builds these pages: `sphinx-build -W -n docs docs/_build/html`."""

import re
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "bonemet_auto"
author = "The bonemet_auto authors"
copyright = "The bonemet_auto authors, Apache-2.0"  # noqa: A001  the name that Sphinx reads
source = Path(__file__).parents[1] / "bonemet_auto" / "__init__.py"
release = re.search(r'__version__ = "(.+)"', source.read_text("utf-8"))[1]  # type: ignore[index]

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
highlight_language = "none"

html_theme = "furo"
html_title = f"bonemet_auto {release}"
html_static_path: list[str] = []


def setup(app: Sphinx) -> None:
    """Show tables in CSV as plain text: Pygments has no lexer of theirs."""
    app.add_lexer("csv", TextLexer)
