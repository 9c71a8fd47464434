"""Sphinx: the pages of docs/, and the API from docstrings. `make docs` builds them into site/."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "grpo_jax"
copyright = "The grpo_jax authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = project
html_static_path: list[str] = []
exclude_patterns = ["results/*.json"]
highlight_language = "none"  # blocks are commands, shapes and listings, unless they say Python
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
default_role = "code"  # what docstrings have in single backticks

# With -n, a type of ours that no page describes is an error; those of others are not looked up.
nitpick_ignore_regex = [("py:.*", r"(?!grpo_jax\.).*|.*\.T")]

_FIELD = re.compile(r"(?P<name>\S+(?:, \S+)*)  +(?P<text>\S.*)")


def _reformat(app, what, name, obj, options, lines):
    """Turn the listings of our docstrings, `name  what it is`, into lists, and escape markup."""
    written: list[str] = []
    listing = False
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field:
            if not listing:
                written.append("")
            written += [f"``{field['name']}``", f"    {_escaped(field['text'])}"]
        elif listing and line.startswith("  "):
            written.append(f"    {_escaped(line.strip())}")
        else:
            written.append(_escaped(line))
        listing = bool(field) or (listing and line.startswith("  "))
    lines[:] = written


def _escaped(line):
    """The line with the characters of reStructuredText escaped outside backticks."""
    pieces = line.split("`")
    pieces[::2] = [re.sub(r"([*|_])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def setup(app):
    """Register the reformatting of docstrings."""
    app.connect("autodoc-process-docstring", _reformat)
