r"""AsciiMath to LaTeX: `` `sum_(i=1)^n i^3=((n(n+1))/2)^2` `` as `\sum_{i=1}^{n} i^{3}=\left(\frac{n(n+1)}{2}\right)^{2}`.

The grammar and the LaTeX names of its symbols are those of asciimath.org: simple expressions are constants, bracketed
expressions, unary and binary symbols; then `_`, `^` and `/` bind in this order, and lose the brackets of their arguments.
"""

from __future__ import annotations

import re

_NAMES = """
    alpha beta chi delta Delta epsilon eta gamma Gamma iota kappa lambda Lambda mu nu omega Omega phi Phi pi Pi psi Psi rho sigma Sigma
    tau theta Theta upsilon xi Xi zeta varepsilon varphi vartheta
    sum prod cdot ast star times div circ oplus otimes odot wedge vee cap cup bigwedge bigvee bigcap bigcup ltimes rtimes bowtie
    ne lt gt le ge leq geq prec succ in notin subset supset subseteq supseteq equiv cong approx propto neg implies iff forall exists bot
    top vdash models int oint partial nabla pm mp emptyset infty aleph therefore because angle triangle ldots cdots vdots ddots quad
    diamond square uparrow downarrow rightarrow leftarrow leftrightarrow Rightarrow Leftarrow Leftrightarrow mapsto to langle rangle
    lfloor rfloor lceil rceil
    sin cos tan sec csc cot sinh cosh tanh coth arcsin arccos arctan log ln exp det dim gcd lim max min sup inf ker deg hom arg Pr"""
SYMBOLS = {name: f"\\{name}" for name in _NAMES.split()} | {
    "*": r"\cdot", "**": r"\ast", "***": r"\star", "//": "/", "\\\\": r"\backslash", "setminus": r"\setminus", "xx": r"\times",
    "|><": r"\ltimes", "><|": r"\rtimes", "|><|": r"\bowtie", "-:": r"\div", "@": r"\circ", "o+": r"\oplus", "ox": r"\otimes",
    "o.": r"\odot", "^^": r"\wedge", "^^^": r"\bigwedge", "vv": r"\vee", "vvv": r"\bigvee", "nn": r"\cap", "nnn": r"\bigcap",
    "uu": r"\cup", "uuu": r"\bigcup", "!=": r"\ne", ":=": ":=", "lt": "<", "gt": ">", "<=": r"\le", ">=": r"\ge",
    "mlt": r"\ll", "mgt": r"\gg",
    "-<": r"\prec", "-lt": r"\prec", ">-": r"\succ", "-<=": r"\preceq", ">-=": r"\succeq", "!in": r"\notin", "sub": r"\subset",
    "sup": r"\supset", "sube": r"\subseteq", "supe": r"\supseteq", "-=": r"\equiv", "~=": r"\cong", "~~": r"\approx", "~": r"\sim",
    "prop": r"\propto", "and": r"\text{ and }", "or": r"\text{ or }", "if": r"\text{ if }", "not": r"\neg", "=>": r"\implies",
    "<=>": r"\iff", "AA": r"\forall", "EE": r"\exists", "_|_": r"\bot", "TT": r"\top", "|--": r"\vdash", "|==": r"\models",
    "del": r"\partial", "grad": r"\nabla", "+-": r"\pm", "-+": r"\mp", "O/": r"\emptyset", "oo": r"\infty", ":.": r"\therefore",
    ":'": r"\because", "/_": r"\angle", "/_\\": r"\triangle", "...": r"\ldots", "'": "'", "\\ ": r"\ ", "qquad": r"\qquad",
    "frown": r"\frown", "CC": r"\mathbb{C}", "NN": r"\mathbb{N}", "QQ": r"\mathbb{Q}", "RR": r"\mathbb{R}", "ZZ": r"\mathbb{Z}",
    "uarr": r"\uparrow", "darr": r"\downarrow", "rarr": r"\rightarrow", "->": r"\to", ">->": r"\rightarrowtail",
    "->>": r"\twoheadrightarrow",
    "|->": r"\mapsto", "larr": r"\leftarrow", "harr": r"\leftrightarrow", "rArr": r"\Rightarrow", "lArr": r"\Leftarrow",
    "hArr": r"\Leftrightarrow", "lcm": r"\text{lcm}", "mod": r"\text{mod}", "f": "f", "g": "g", "%": r"\%", "$": r"\$", "#": r"\#",
    "dx": "dx", "dy": "dy", "dz": "dz", "dt": "dt", "&": "&",
}  # fmt: skip
UNARY = {
    "sqrt": "sqrt", "hat": "hat", "bar": "overline", "overline": "overline", "vec": "vec", "tilde": "tilde", "dot": "dot", "ddot": "ddot",
    "ul": "underline", "underline": "underline", "ubrace": "underbrace", "underbrace": "underbrace", "obrace": "overbrace",
    "overbrace": "overbrace", "overarc": "overparen", "cancel": "cancel", "bb": "mathbf", "mathbf": "mathbf", "sf": "mathsf",
    "mathsf": "mathsf", "bbb": "mathbb", "mathbb": "mathbb", "cc": "mathcal", "mathcal": "mathcal", "tt": "mathtt", "mathtt": "mathtt",
    "fr": "mathfrak", "mathfrak": "mathfrak", "text": "text", "mbox": "text",
}  # fmt: skip
AROUND = {"abs": ("|", "|"), "norm": (r"\|", r"\|"), "floor": (r"\lfloor", r"\rfloor"), "ceil": (r"\lceil", r"\rceil"), "Abs": ("|", "|")}
BINARY = {"frac": r"\frac{%s}{%s}", "root": r"\sqrt[%s]{%s}", "stackrel": r"\stackrel{%s}{%s}", "overset": r"\overset{%s}{%s}",
          "underset": r"\underset{%s}{%s}", "color": "%.0s%s"}  # fmt: skip
OPENING = {"(": "(", "[": "[", "{": r"\{", "(:": r"\langle", "<<": r"\langle", "langle": r"\langle", "{:": "."}
CLOSING = {")": ")", "]": "]", "}": r"\}", ":)": r"\rangle", ">>": r"\rangle", "rangle": r"\rangle", ":}": "."}
_TOKENS = sorted({*SYMBOLS, *UNARY, *AROUND, *BINARY, *OPENING, *CLOSING, "_", "^", "/", "|"}, key=len, reverse=True)
TOKEN = re.compile(r'"[^"]*"|\\[A-Za-z]+|(?:text|mbox)\s*\([^)]*\)|\d+(?:\.\d+)?|' + "|".join(map(re.escape, _TOKENS)) + r"|\S")
MATRICES = {("(", ")"): "pmatrix", ("[", "]"): "bmatrix", ("|", "|"): "vmatrix", (r"\{", "."): "cases", (r"\{", r"\}"): "Bmatrix"}


def to_tex(source: str) -> str:
    r"""LaTeX of an AsciiMath formula.

    >>> to_tex("x=(-b+-sqrt(b^2-4ac))/(2a)")
    'x = \\frac{- b \\pm \\sqrt{b^{2} - 4 a c}}{2 a}'
    """
    tokens = TOKEN.findall(source)[::-1]
    parts = []
    while tokens:
        parts.append(_expression(tokens, "") or _constant(tokens.pop()))
    return " ".join(parts)


def _expression(tokens: list[str], closing: str) -> str:
    """Intermediate expressions up to a closing bracket (left in `tokens`)."""
    parts = []
    while tokens and tokens[-1] not in CLOSING and (closing != "|" or tokens[-1] != "|"):
        parts.append(_fraction(tokens))
    return " ".join(filter(None, parts))


def _fraction(tokens: list[str]) -> str:
    top = _scripted(tokens)
    if not tokens or tokens[-1] != "/":
        return top
    tokens.pop()
    return rf"\frac{{{_unwrapped(top)}}}{{{_sign(tokens)}{_unwrapped(_scripted(tokens))}}}"


def _sign(tokens: list[str]) -> str:
    """The sign of an argument: `x^-1` means what its writer meant."""
    return tokens.pop() if len(tokens) > 1 and tokens[-1] in ("-", "+") else ""


def _scripted(tokens: list[str]) -> str:
    tex = _simple(tokens)
    for mark in "_^":
        if tokens and tokens[-1] == mark:
            tokens.pop()
            tex += f"{mark}{{{_sign(tokens)}{_unwrapped(_simple(tokens))}}}"
    return tex


def _simple(tokens: list[str]) -> str:
    if not tokens or tokens[-1] in CLOSING:
        return ""
    token = tokens.pop()
    if token.startswith(("text", "mbox")) and token.endswith(")"):
        return rf"\text{{{token.partition('(')[2][:-1]}}}"
    if token in UNARY:
        return rf"\{UNARY[token]}{{{_unwrapped(_simple(tokens))}}}"
    if token in AROUND:
        return rf"\left{AROUND[token][0]} {_unwrapped(_simple(tokens))} \right{AROUND[token][1]}"
    if token in BINARY:
        return BINARY[token] % (_unwrapped(_simple(tokens)), _unwrapped(_simple(tokens)))
    if token in OPENING or token == "|" and "|" in tokens:
        return _bracketed(token, tokens)
    return _constant(token)


def _bracketed(token: str, tokens: list[str]) -> str:
    inside = _expression(tokens, token)
    if not tokens:
        return f"{OPENING.get(token, '|').replace('.', '')} {inside}"
    closing = tokens.pop()
    left, right = OPENING.get(token, "|"), CLOSING.get(closing, "|")
    if rows := _rows(inside):
        env = MATRICES.get((left, right), "matrix")
        return rf"\begin{{{env}}} {rows} \end{{{env}}}"
    return rf"\left{left} {inside} \right{right}"


def _rows(inside: str) -> str:
    """The rows of a matrix, `[a,b],[c,d]`, with `&`; empty where it is none."""
    rows = re.findall(r"\\left[(\[] ((?:(?!\\left|\\right).)*) \\right[)\]]", inside)
    rest = re.sub(r"\\left[(\[] ((?:(?!\\left|\\right).)*) \\right[)\]]", "", inside)
    columns = {row.count(",") for row in rows}
    return r" \\ ".join(row.replace(" , ", " & ") for row in rows) if len(rows) > 1 and len(columns) == 1 and not rest.strip(" ,") else ""


def _constant(token: str) -> str:
    if token.startswith('"') and len(token) > 1:
        return rf"\text{{{token[1:-1]}}}"
    return SYMBOLS.get(token) or CLOSING.get(token) or {"_": r"\_", "^": r"\wedge"}.get(token, token)


def _unwrapped(tex: str) -> str:
    """An argument without its own brackets."""
    found = re.fullmatch(r"\\left[(\[.](?:\\\{)? ?(.*) \\right[)\].]", tex) or re.fullmatch(r"\\left\\\{ (.*) \\right\\\}", tex)
    if not found:
        return tex
    depth = 0
    for mark in re.findall(r"\\left(?![a-z])|\\right(?![a-z])", tex)[:-1]:
        depth += 1 if mark == r"\left" else -1
        if not depth:
            return tex
    return found.group(1)
