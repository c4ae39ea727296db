"""How Sphinx builds the site: pages in Markdown, the reference from the code (`generate.py`), all of it local."""

import importlib.metadata
import re
import shutil
import sys
from importlib.resources import files
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "eex"
author = "the eex developers"
copyright = author
version = release = importlib.metadata.version("eex")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # numpydoc's sections
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_static"]
default_role = "py:obj"  # `UCB` in a docstring: a link where the name is documented nearby, code elsewhere
nitpicky = True
nitpick_ignore_regex = [  # in texts, full names lead somewhere; types, short names and commands need not
    ("py:(?!obj|mod).*", ".*"),
    ("py:.*", r"(?!eex\.(?!stream\.commands)).*"),
]
suppress_warnings = ["ref.python"]  # short names of types that several modules have
smartquotes = False  # would make dashes of --options

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

add_module_names = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
maximum_signature_line_length = 90
python_use_unqualified_type_names = True
napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list; their names are not described a second time
napoleon_use_rtype = False
napoleon_attr_annotations = False
toc_object_entries_show_parents = "hide"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "eex"
html_static_path = ["_static"]
html_css_files = ["eex.css"]
html_show_sphinx = False
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
pygments_style = "tango"
pygments_dark_style = "github-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e6e", "color-brand-content": "#0b6e6e"},
    "dark_css_variables": {"color-brand-primary": "#5cc8c0", "color-brand-content": "#5cc8c0"},
}

# MathJax in one file that loads no other, from the package django-static-mathjax, which needs no Django
mathjax_path = "mathjax.js"
mathjax3_config = {"options": {"enableMenu": False}}


ARRAYS = {"float64": "Floats", "int64": "Ints", "bool": "Bools"}
"""Short names of arrays in signatures, as `eex.policies.core.base` has them."""


def setup(app: Sphinx) -> None:
    """Write the generated pages before Sphinx looks for pages, and put MathJax beside them afterwards."""
    import generate

    generate.write(HERE / "reference")
    app.connect("autodoc-process-docstring", _keep_drawings, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _shorten)
    app.connect("doctree-read", _plain_words)
    app.connect("build-finished", _copy_mathjax)
    app.connect("build-finished", _check_that_nothing_is_loaded_from_elsewhere)


def _keep_drawings(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Make literal blocks of the drawings, grammars and aligned columns in the docstrings of modules."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")  # or napoleon takes what stands before a colon for a type
    if what != "module":
        return
    paragraphs = "\n".join(lines).strip("\n").split("\n\n")
    kept = [
        ".. code-block:: text\n\n" + re.sub(r"^", "   ", paragraph, flags=re.M)
        if re.search(r"\S {2,}\S|[│├└─►◄▼]|^ {2,}\w+ *=", paragraph)
        else paragraph
        for paragraph in paragraphs
    ]
    lines[:] = "\n\n".join(kept).split("\n")


def _shorten(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write arrays in signatures as the code does."""

    def short(text: str | None) -> str | None:
        array = (
            r"~?(?:numpy\.)?ndarray\[tuple\[~?(?:typing\.)?Any, \.\.\.\], ~?(?:numpy\.)?dtype\[~?(?:numpy\.)?(\w+)\]\]"
        )
        return text and re.sub(array, lambda m: ARRAYS.get(m[1], f"NDArray[{m[1]}]"), text)

    return short(signature), short(returns)


def _plain_words(app: Sphinx, doctree: nodes.document) -> None:
    """Write dashes as dashes, and addresses like tcp://host:port as code: nobody can follow them."""
    for text in list(doctree.findall(nodes.Text)):
        if " -- " in text and not isinstance(text.parent, nodes.literal | nodes.literal_block):
            text.parent.replace(text, nodes.Text(text.replace(" -- ", " – ")))
    for link in list(doctree.findall(nodes.reference)):
        if link.get("refuri", "").startswith("tcp:"):
            link.parent.replace(link, nodes.literal(link.astext(), link.astext()))


def _copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        script = files("mathjax") / "static/mathjax/es5/tex-svg.js"
        shutil.copyfile(str(script), Path(app.outdir) / "_static" / mathjax_path)


def _check_that_nothing_is_loaded_from_elsewhere(app: Sphinx, exception: Exception | None) -> None:
    loads = re.compile(
        r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*|url\(['\"]?(?:https?:)?//[^)]*"
    )
    for path in sorted(Path(app.outdir).rglob("*")) if exception is None else ():
        if path.suffix in (".html", ".css"):
            for found in loads.findall(path.read_text(encoding="utf-8")):
                logging.getLogger("eex").warning("%s loads %s", path.name, found)
