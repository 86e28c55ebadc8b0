"""HTML to text: every kind of formula, boilerplate."""

from __future__ import annotations

import pytest

from mathpipe.corpus import render
from mathpipe.corpus.extract import html_to_text


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ('<script type="math/tex">a<b</script>', r"\(a<b\)"),
        ('<script type="math/tex; mode=display">% <![CDATA[\nx^2 %]]></script>', r"\[x^2\]"),
        (r"\(a_1\)", r"\(a_1\)"),
        ("$a_1$", "$a_1$"),
        ('<math><semantics><mi>a</mi><annotation encoding="application/x-tex">a &lt; b</annotation></semantics></math>', r"\(a < b\)"),
        ('<math display="block" alttext="\\frac{1}{2}"><mfrac><mn>1</mn><mn>2</mn></mfrac></math>', r"\[\frac{1}{2}\]"),
        ("<math><mfrac><mn>1</mn><mn>2</mn></mfrac></math>", r"\(\frac{1}{2}\)"),
        (
            '<span class="mwe-math-element"><span class="mwe-math-mathml-inline" style="display: none;"><math alttext="x"><mi>x</mi></math>'
            '</span><img class="mwe-math-fallback-image-inline" alt="x"></span>',
            r"\(x\)",
        ),
        (
            '<span class="katex"><span class="katex-mathml"><math><semantics><mi>y</mi><annotation encoding="application/x-tex">y'
            '</annotation></semantics></math></span><span class="katex-html" aria-hidden="true">y y</span></span>',
            r"\(y\)",
        ),
    ],
)
def test_every_kind_of_formula_becomes_delimited_latex(formula: str, expected: str) -> None:
    assert html_to_text(f"<html><body><main><p>Let {formula} hold.</p></main></body></html>") == f"Let {expected} hold."


@pytest.mark.parametrize("style", range(len(render.MATH_STYLES)))
def test_rendered_math_survives_extraction(style: int) -> None:
    body = render.render_body("The area is :math:`\\pi r^2` for a circle.\n\n.. math:: e^{i\\pi} = -1\n", style)
    page = render.render_page("pkg", "1.0", ["pkg", "area"], "pkg.area(r)", body, [("other", "/other.html")])
    text = html_to_text(page)
    assert r"\pi r^2" in text and r"e^{i\pi} = -1" in text
    assert text.count("pi r^2") == 1, "a formula stands once, not also as rendered glyphs"
    assert "Release notes" not in text and "Privacy" not in text, "navigation and footer are no text"
