"""Sphinx configuration: MyST pages, the API reference from docstrings, the pydata theme."""

from __future__ import annotations

import re
from pathlib import Path

_init = Path(__file__).parents[1] / "med3d_ext" / "__init__.py"
_version = re.search(r'__version__ = "(.+?)"', _init.read_text(encoding="utf-8"))

project = "med3d_ext"
author = "the med3d_ext maintainers"
copyright = author
release = _version.group(1) if _version else ""
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what an argument is
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = "Med3D as MONAI bundles"
myst_heading_anchors = 3
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
if not Path(__file__).with_name("results.md").is_file():
    suppress_warnings = ["myst.xref_missing"]  # the README links to the measured figures, which come last
