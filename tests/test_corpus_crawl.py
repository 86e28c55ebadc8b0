"""The docs crawl, URLs, archives on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from corpus_artifacts import digests, finish, folder, rows
from hypothesis import given
from hypothesis import strategies as st

from mathpipe.corpus import crawl, docstrings, pages, render, urls
from mathpipe.corpus.config import PagesConfig, PagesInputs
from mathpipe.corpus.crawl import respelled
from mathpipe.corpus.crawl_config import CrawlConfig, NoInputs


def test_docutils_drops_nothing_from_numpydoc_sections() -> None:
    text = "Sum.\n\nParameters\n----------\nx : int\n    A number, see :func:`f`.\n\n.. versionadded:: 1.2\n   New.\n"
    html = render.render_body(text, 0)
    for part in ("<h2>Parameters</h2>", "<dt>x</dt>", "<code>f</code>", "New."):
        assert part in html


def test_docstrings_of_functions_classes_and_compiled_objects(tmp_path) -> None:
    source = 'class A:\n    def f(self, x=1):\n        """Doc of f."""\nadd_newdoc("np", "zeros", """Doc of zeros.""")\n'
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.py").write_text(source)
    found = list(docstrings.read_file("pkg", tmp_path, tmp_path / "sub" / "m.py", 100))
    assert [(d.module, d.name, d.signature, d.text) for d in found] == [
        (("sub", "m"), "A.f", "(self, x=1)", "Doc of f."),
        (("sub", "m"), "zeros", "", "Doc of zeros."),
    ]


@pytest.mark.parametrize(("one", "spellings"), [
    ("example.org/a/?a=1&b=2", ["http://example.org/a/?b=2&a=1", "https://www.Example.org:443/a/index.html?a=1&b=2#x",
                                "https://example.org/a/?utm_source=n&a=1&b=2", "http://u:p@example.org.:80/x/../a/Default.aspx?a=1&b=2"]),
    ("example.org/", ["http://example.org", "http://www.example.org/?", "http://example.org/./index.php", "http://example.org/a/.."]),
    ("example.org/a", ["http://example.org/a;jsessionid=0A1?PHPSESSID=7", "http://example.org/(S(abcdefghijklmnopqrstuvwx))/a"]),
    ("example.org/~x/%E4%B8%AD%2Fb", ["http://example.org/%7ex/%e4%b8%ad%2fb", "http://example.org/~x/中%2Fb"]),
    ("xn--e1afmkfd.xn--p1ai/", ["http://пример.рф/", "http://ПРИМЕР.рф", "http://xn--e1afmkfd.xn--p1ai"]),
    ("[::1]:8080/", ["http://[::1]:8080/"]),
    ("example.org/?q=%CA%FD", ["http://example.org/?q=%ca%fd"]),
])  # fmt: skip
def test_url_spellings_of_one_page(one: str, spellings: list[str]) -> None:
    assert {urls.normalize(url) for url in spellings} == {one}


def test_different_pages_stay_apart() -> None:
    pages_ = ["http://a.org/b", "http://a.org/c", "http://a.org/b/", "http://a.org/b?x=1", "http://a.org/?q=%CA%FD", "http://a.org/?q=%D1%A7",
              "http://a.org:8080/b", "http://b.a.org/b", "http://a.org/x/y", "http://a.org/x%2Fy"]  # fmt: skip
    assert len({urls.normalize(url) for url in pages_}) == len(pages_)


PIECES = ("/", "..", ".", "a", "B", "%2e", "%2F", "%zz", "%FF", "é", ";jsessionid=1", ";", "(S(abcdefghijklmnopqrstuvwx))", "index.html",
          "?", "&", "=", "+", "%26", "utm_x=1", "#", " ", "\udcff")  # fmt: skip
HOSTS = ("a.org", "WWW.a.org", "www.www.a.org", "a.org.", "bücher.de", "www.", "[::1]", "u:p@a.org", "ｗｗｗ.a.org")


PORTS = ("", ":80", ":443", ":8080", ":")


@given(st.sampled_from(("http", "HTTPS")), st.sampled_from(HOSTS), st.sampled_from(PORTS), st.lists(st.sampled_from(PIECES)))
def test_a_normalized_url_normalizes_to_itself(scheme: str, host: str, port: str, pieces: list[str]) -> None:
    once = urls.normalize(f"{scheme}://{host}{port}/{''.join(pieces)}")
    assert urls.normalize(f"http://{once}") == once
    assert urls.host_of(f"http://{once}") == urls.host_of(f"{scheme}://{host}{port}/")


@pytest.mark.parametrize("url", ["ftp://a.org/x", "/relative", "https:///x", "http://a.org:x/"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        urls.normalize(url)


@given(st.from_regex(r"https://docs\.[a-z]{1,8}\.example/([a-z]{1,5}/){0,3}([a-z.]{1,8}\.html)?", fullmatch=True))
def test_planted_spellings_normalize_to_the_page(url: str) -> None:
    assert respelled(url) != url
    assert urls.normalize(respelled(url)) == urls.normalize(url)


def test_a_warc_crawl_wants_paths() -> None:
    with pytest.raises(ValueError, match="needs paths"):
        CrawlConfig(source="warc")


def test_a_file_that_is_no_warc_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f'[crawl]\nsource = "warc"\npaths = ["{tmp_path}/c.toml"]\n')
    command = [sys.executable, "-m", "mathpipe.corpus.crawl", "--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"{tmp_path}/c.toml" in done.stderr and "not a WARC file" in done.stderr and done.stderr.count("\n") == 1


def test_docs_crawl_is_deterministic_and_its_planted_duplicates_are_found(tmp_path: Path) -> None:
    limits = {"max_pages_per_package": 60, "pages_per_shard": 70, "num_url_duplicates": 10}
    config = CrawlConfig(packages=("mpmath", "luigi"), math_packages=("mpmath",), **limits)
    outs = [folder(tmp_path, name) for name in ("a", "b")]
    facts = [crawl.run(config, NoInputs(), out) for out in outs]
    assert facts[0]["num_pages"] == 130 and facts[0]["num_shards"] == 2
    assert digests(outs[0], "warc", "labels") == digests(outs[1], "warc", "labels")
    found = folder(tmp_path, "pages")
    facts = pages.run(PagesConfig(min_chars=1), PagesInputs(finish(outs[0], facts[0])), found)
    assert facts["num_rejects"]["url duplicate"] == 10
    assert {row["host"] for row in rows(found)} == {"docs.mpmath.example", "docs.luigi.example"}
    assert any("\\(" in row["text"] or "\\[" in row["text"] or "$" in row["text"] for row in rows(found)), "formulas are kept"
