"""How Sphinx makes these pages: ``sphinx-build -W -b html docs OUT``."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pyg_c2f

project = 'pyg_c2f'
version = release = pyg_c2f.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.mathjax',
]
html_theme = 'furo'
html_title = f'pyg_c2f {release}'
html_show_copyright = False
html_static_path = ['_static']
html_css_files = ['tables.css']

# The pages are read on GitHub too: formulas and anchors of headings as it has them.
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
napoleon_numpy_docstring = False
napoleon_custom_sections = ['Shapes']
autodoc_member_order = 'bysource'
autodoc_typehints_format = 'short'
python_maximum_signature_line_length = 72

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / 'benchmarks'))  # for its methods
# Files outside this folder that are pages too.
PAGES = {
    DOCS.parent / 'README.md': DOCS / 'readme.md',
    DOCS.parent / 'CHANGELOG.md': DOCS / 'changelog.md',
    DOCS.parent / 'CONTRIBUTING.md': DOCS / 'contributing.md',
    DOCS.parent / 'examples/README.md': DOCS / 'examples.md',
}
LINK = re.compile(r'(!?)\[([^]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)')


def mend_links(text: str, source: Path, page: Path) -> str:
    """The same links from the page that the text of a file becomes a part of.

    Files that are not pages are offered as downloads.
    """

    def mended(link: re.Match[str]) -> str:
        is_image, label, target, anchor = link.groups()
        path = (source.parent / target).resolve()
        if not path.exists():  # An address, or no link at all.
            return link[0]
        path = PAGES.get(path, path)
        here = os.path.relpath(path, page.parent)
        if path.is_relative_to(DOCS) and path.suffix == '.md':
            return f'[{label}]({here}{anchor or ""})'
        return f'{is_image}[{label}]({"" if is_image else "path:"}{here})'

    return LINK.sub(mended, text)


def setup(app: Any) -> None:
    """Links are right in the place where a file lies, and are mended for its page."""

    def mend_page(app: Any, name: str, content: list[str]) -> None:
        path = DOCS / f'{name}.md'
        content[0] = mend_links(content[0], path, path)

    def mend_included(app: Any, path: Path, name: str, content: list[str]) -> None:
        source = (DOCS / path).resolve()
        content[0] = mend_links(content[0], source, DOCS / f'{name}.md')

    app.connect('source-read', mend_page)
    app.connect('include-read', mend_included)
