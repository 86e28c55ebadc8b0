"""One docstring as one web page: reStructuredText through docutils, inside the furniture of a documentation site.

Mathematics is written the ways the web writes it, by turns: MathJax 2 scripts, `\\(…\\)` for MathJax 3, MathML with a TeX
annotation, KaTeX, `$…$`. Which one a page uses follows from a hash of its URL.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from html import escape

from docutils import core, frontend, nodes, utils
from docutils.parsers.rst import Directive, Parser, directives, roles
from docutils.utils.math import MathError, latex2mathml

TAGS = {
    "paragraph": "p", "emphasis": "em", "strong": "strong", "literal": "code", "title_reference": "cite", "bullet_list": "ul",
    "enumerated_list": "ol", "list_item": "li", "definition_list": "dl", "term": "dt", "definition": "dd", "block_quote": "blockquote",
    "literal_block": "pre", "doctest_block": "pre", "line_block": "div", "line": "div", "table": "table", "thead": "thead",
    "tbody": "tbody", "row": "tr", "entry": "td", "field_list": "dl", "field_name": "dt", "field_body": "dd", "option_list": "dl",
    "option_group": "dt", "description": "dd", "section": "section", "rubric": "h4", "subscript": "sub", "superscript": "sup",
    "classifier": "i", "citation": "div", "footnote": "div", "label": "b", "note": "aside", "warning": "aside", "container": "aside",
}  # fmt: skip
"""docutils node → HTML element; other nodes leave their text only."""
DROPPED = {"system_message", "comment", "colspec", "substitution_definition", "target", "image"}
ROLES = (
    "func", "class", "meth", "mod", "attr", "obj", "ref", "doc", "term", "data", "exc", "const", "any", "external", "kbd", "file",
    "envvar", "option", "program", "command",
)  # fmt: skip
NOTES = ("versionadded", "versionchanged", "deprecated", "seealso", "legacy")
HIDDEN = ("plot", "autosummary", "currentmodule", "module", "testsetup", "autofunction", "autoclass", "toctree", "index", "only")
LATEX_SETTINGS = {
    "report_level": 5, "halt_level": 6, "file_insertion_enabled": False, "raw_enabled": False, "syntax_highlight": "none",
    "line_length_limit": 1_000_000, "output_encoding": "unicode", "use_latex_citations": True, "legacy_column_widths": False,
}  # fmt: skip
DOLLAR_MATH = re.compile(r"\$([^$\n]{1,300})\$")


class _Note(Directive):
    """`.. versionadded:: 1.2` and its like: a box with the text."""

    optional_arguments, final_argument_whitespace, has_content = 1, True, True

    def run(self) -> list[nodes.Node]:
        box = nodes.container()
        label = " ".join([self.name, *self.arguments])
        box += nodes.paragraph(label, label)
        self.state.nested_parse(self.content, self.content_offset, box)
        return [box]


class _Hidden(_Note):
    """`.. plot::` and its like: nothing."""

    option_spec = None

    def run(self) -> list[nodes.Node]:
        return []


@functools.cache
def _parser() -> tuple[Parser, frontend.Values]:
    """docutils set up once per process: Sphinx's roles are plain code, its boxes are boxes, errors leave no trace."""
    for name in ROLES:
        for prefix in ("", "py:", "c:"):
            roles.register_local_role(prefix + name, roles.GenericRole(name, nodes.literal))
    for names, directive in ((NOTES, _Note), (HIDDEN, _Hidden)):
        for name in names:
            directives.register_directive(name, directive)
    settings = frontend.get_default_settings(Parser)
    settings.report_level, settings.halt_level = 5, 6
    settings.file_insertion_enabled, settings.raw_enabled = False, False
    settings.syntax_highlight, settings.line_length_limit = "none", 100_000
    return Parser(), settings


def render_body(text: str, style: int, dollar_math: bool = False) -> str:
    """HTML of reStructuredText.

    Args:
        style: index into `MATH_STYLES`.
        dollar_math: `$…$` in the source is a formula, as in sympy's documentation.
    """
    parser, settings = _parser()
    if dollar_math:
        text = DOLLAR_MATH.sub(r":math:`\1`", text)
    document = utils.new_document("docstring", settings)
    parser.parse(text, document)
    return _html(document, MATH_STYLES[style % len(MATH_STYLES)], 1)


def has_math(text: str) -> bool:
    """Whether reStructuredText has a formula."""
    return ":math:" in text or ".. math::" in text


def render_latex(title: str, text: str) -> str:
    """reStructuredText as a LaTeX document, with a preamble of two lines."""
    _parser()  # roles and directives are known to docutils from here on
    body = core.publish_parts(text, writer="latex", settings_overrides=LATEX_SETTINGS)["body"].strip()
    heading = title.replace("_", r"\_")
    return f"\\documentclass{{article}}\n\\title{{{heading}}}\n\\begin{{document}}\n\\maketitle\n\n{body}\n\n\\end{{document}}\n"


def _html(node: nodes.Node, math: Callable[[str, bool], str], depth: int) -> str:
    if isinstance(node, nodes.Text):
        return escape(str(node), quote=False)
    name = type(node).__name__
    if name in DROPPED:
        return ""
    if name in ("math", "math_block"):
        return math(node.astext(), name == "math_block")
    inside = "".join(_html(child, math, depth + (name == "section")) for child in node.children)
    if name in ("title", "subtitle"):
        return f"<h{min(depth, 6)}>{inside}</h{min(depth, 6)}>\n"
    if name == "reference" and "refuri" in node:
        return f'<a href="{escape(node["refuri"])}">{inside}</a>'
    tag = TAGS.get(name)
    return f"<{tag}>{inside}</{tag}>\n" if tag and not isinstance(node, nodes.Inline) else f"<{tag}>{inside}</{tag}>" if tag else inside


def _script(tex: str, display: bool) -> str:
    kind = "math/tex; mode=display" if display else "math/tex"
    safe = tex.replace("</", "< /")
    return f'<span class="MathJax_Preview"></span><script type="{kind}">{safe}</script>'


def _delimited(tex: str, display: bool) -> str:
    left, right = (r"\[", r"\]") if display else (r"\(", r"\)")
    return f'<span class="math notranslate nohighlight">{left}{escape(tex, quote=False)}{right}</span>'


def _dollar(tex: str, display: bool) -> str:
    mark = "$$" if display else "$"
    return f"<span>{mark}{escape(tex, quote=False)}{mark}</span>"


def _mathml(tex: str, display: bool) -> str:
    """MathML with the TeX as annotation; formulas that docutils cannot convert stay delimited TeX."""
    try:
        tree = latex2mathml.tex2mathml(tex, as_block=display)
    except (MathError, KeyError, IndexError, AttributeError, TypeError):
        return _delimited(tex, display)
    inner = re.sub(r"^\s*<math[^>]*>|</math>\s*$", "", tree)
    annotation = f'<annotation encoding="application/x-tex">{escape(tex, quote=False)}</annotation>'
    mode = ' display="block"' if display else ""
    namespace = "http://www.w3.org/1998/Math/MathML"
    return f'<math xmlns="{namespace}"{mode}><semantics><mrow>{inner}</mrow>{annotation}</semantics></math>'


def _katex(tex: str, display: bool) -> str:
    mathml = _mathml(tex, display)
    if not mathml.startswith("<math"):
        return mathml
    glyphs = escape(re.sub(r"\\[a-zA-Z]+|[{}_^]", " ", tex), quote=False)
    shown = f'<span class="katex-html" aria-hidden="true">{glyphs}</span>'
    body = f'<span class="katex"><span class="katex-mathml">{mathml}</span>{shown}</span>'
    return f'<span class="katex-display">{body}</span>' if display else body


MATH_STYLES = (_script, _delimited, _mathml, _katex, _dollar)


def render_page(package: str, version: str, path: Sequence[str], heading: str, body: str, neighbours: Sequence[tuple[str, str]]) -> str:
    """The whole page.

    Args:
        path: package, modules and name, for the breadcrumbs.
        heading: what the page documents, with its signature.
        neighbours: (title, address) of other pages of the site, for the side bar.
    """
    site = f"{escape(package)} {escape(version)} documentation"
    crumbs = " &raquo; ".join(escape(part) for part in path)
    links = "\n".join(f'<li><a href="{escape(address)}">{escape(title)}</a></li>' for title, address in neighbours)
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{escape(".".join(path))} &#8212; {site}</title>
<link rel="stylesheet" href="/_static/site.css"><script src="/_static/search.js"></script></head>
<body>
<header><div class="logo"><a href="/">{site}</a></div>
<nav><ul><li><a href="/install.html">Install</a></li><li><a href="/tutorial/">Tutorial</a></li>
<li><a href="/reference/">API reference</a></li>
<li><a href="/releases.html">Release notes</a></li></ul></nav>
<form action="/search.html"><input name="q" placeholder="Search the docs"></form></header>
<div class="breadcrumbs">{crumbs}</div>
<div class="sidebar"><h3>In this section</h3><ul>
{links}
</ul></div>
<main><article><h1>{escape(heading)}</h1>
{body}
</article></main>
<footer><p>&copy; Copyright the {escape(package)} developers. Built with docutils.</p>
<p><a href="/privacy.html">Privacy</a> | <a href="/contact.html">Contact</a> | <a href="#top">Back to top</a></p></footer>
</body></html>
"""
