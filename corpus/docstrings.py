"""Docstrings of installed packages, read from their source without importing them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mathpipe.corpus.crawl_config import STANDARD_LIBRARY

SKIPPED_FOLDERS = {"tests", "test", "testing", "idlelib", "site-packages", "dist-packages", "_vendor", "__pycache__"}
"""Folders whose docstrings document nothing that a user of the package reads."""


@dataclass(frozen=True)
class Docstring:
    """One documented object."""

    package: str
    module: tuple[str, ...]
    """Path of the module inside the package; empty for the package itself."""
    name: str
    """Qualified name inside the module; empty for the module itself."""
    signature: str
    text: str


def collect(package: str, min_chars: int, max_chars: int, max_pages: int) -> list[Docstring]:
    """Docstrings of one package, at most `max_pages`; whole source files are taken in the order of a hash of their path.

    Raises:
        ValueError: the package is not installed.
    """
    root = source_root(package)
    files = [file for file in root.rglob("*.py") if not SKIPPED_FOLDERS & set(file.relative_to(root).parts)]
    files.sort(key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())
    found: list[Docstring] = []
    for file in files:
        if len(found) >= max_pages:
            break
        found += [d for d in read_file(package, root, file, max_chars) if len(d.text) >= min_chars]
    found = found[:max_pages]
    return sorted(found, key=lambda d: (d.module, d.name))


def source_root(package: str) -> Path:
    """Folder with the package's source."""
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{package!r} is not an installed package; install it or take it out of the list")
    return Path(next(iter(spec.submodule_search_locations)))


def read_file(package: str, root: Path, file: Path, max_chars: int) -> Iterator[Docstring]:
    """Documented objects of one source file, in its order; an object defined twice counts once.

    A file that is not Python of this version (a template, Python 2) has none.
    """
    source = file.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    parts = file.relative_to(root).with_suffix("").parts
    module = parts[:-1] if parts[-1] == "__init__" else parts
    seen = set()
    for name, signature, text in _walk(tree, ""):
        if name not in seen:
            seen.add(name)
            yield Docstring(package, module, name, signature, cut(inspect.cleandoc(text), max_chars))


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, str, str]]:
    """(qualified name, signature, docstring) of a module or class and what it defines; functions are not entered."""
    if text := ast.get_docstring(node, clean=False) if isinstance(node, ast.Module | ast.ClassDef) else None:
        yield prefix, "", text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _walk(child, _join(prefix, child.name))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(child, clean=False):
                yield _join(prefix, child.name), f"({ast.unparse(child.args)})", text
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _added(child.value)


def _added(call: ast.Call) -> Iterator[tuple[str, str, str]]:
    """Documentation of compiled objects: `add_newdoc("numpy._core", "zeros", \"\"\"…\"\"\")` of numpy and scipy."""
    if getattr(call.func, "id", getattr(call.func, "attr", "")) != "add_newdoc":
        return
    strings = [n.value for a in call.args for n in ast.walk(a) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    if len(strings) >= 2:
        *names, text = strings
        yield ".".join(names[1:] or names), "", text


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def cut(text: str, max_chars: int) -> str:
    """`text` up to the last paragraph end before `max_chars`."""
    if len(text) <= max_chars:
        return text
    end = text.rfind("\n\n", 0, max_chars)
    return text[: end if end > 0 else max_chars]
