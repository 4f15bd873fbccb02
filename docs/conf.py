"""Settings of the documentation site: `make docs` builds it from these Markdown pages."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

import audiolm_jax  # noqa: E402

project = 'audiolm_jax'
version = release = audiolm_jax.__version__
copyright = '2026, the authors of audiolm_jax'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['_build', 'sounds/make.py']
html_theme = 'sphinx_book_theme'
html_title = 'audiolm_jax'
html_extra_path = ['../audiolm_jax/releases/speech/examples', 'sounds']

myst_heading_anchors = 3
# The diary and the results link to files of the repository, which the site does not contain.
suppress_warnings = ['myst.xref_missing', 'misc.highlighting_failure']

default_role = 'code'  # single backquotes in docstrings are code
autodoc_default_options = {'members': True, 'member-order': 'bysource'}
autodoc_typehints_format = 'short'
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [('Fields', 'params_style')]
