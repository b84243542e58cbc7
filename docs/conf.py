"""Settings of Sphinx for these pages.

``python -m sphinx -W --keep-going -b html docs docs/_build/html`` makes them, with what
``docs/requirements.txt`` lists and an installed memvit_mm.
"""

import re

from memvit_mm import __version__

project = 'memvit_mm'
version = release = __version__
copyright = 'the authors of memvit_mm, Apache-2.0'

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build', 'jupyter_execute']

html_theme = 'furo'
html_title = f'memvit_mm {release}'
html_static_path = ['_static']
html_css_files = ['tables.css']
# Pages are read, not built from: their sources are in the repository.
html_copy_source = html_show_sourcelink = False

# `page.md#a-section` is a link to a heading, as on GitHub.
myst_heading_anchors = 4
# The tests run the notebook; the pages show what it printed when it was committed.
nb_execution_mode = 'off'

# Docstrings tell types and defaults; signatures have one argument a line.
autodoc_member_order = 'bysource'
autodoc_typehints_format = 'short'
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False


def setup(app):
    """Links to Markdown outside this folder lead to the file, as those to code do."""

    def link_files(app, name, source):
        source[0] = re.sub(r'\]\((\.\./[^)#]+\.md)[^)]*\)', r'](path:\1)', source[0])

    app.connect('source-read', link_files)
