"""Sphinx configuration: `bash scripts/docs` builds build/site, and a warning is an error."""

import re
from typing import Any

import toa_trl

project = "toa_trl"
author = "the toa_trl authors"
version = release = toa_trl.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "toa_trl"
html_static_path = ["_static"]
html_css_files = ["phone.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
myst_linkify_fuzzy_links = False
# the journals' words of a run are no Python
suppress_warnings = ["misc.highlighting_failure"]
nb_execution_mode = "off"  # tests/docs runs the notebook; its results are stored in it
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def as_restructured_text(
    app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Read `code` and stars in docstrings as Markdown does."""
    for number, line in enumerate(lines):
        text, *rest = re.split(r"`+([^`]+)`+", line)
        shown = text.replace("*", r"\*")
        for code, after in zip(rest[::2], rest[1::2], strict=True):
            joint = "\\" if after[:1].isalnum() else ""  # as in `Message`s
            shown += f"``{code}``{joint}" + after.replace("*", r"\*")
        lines[number] = shown


def setup(app: Any) -> None:
    """Convert docstrings before napoleon reads them."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)
