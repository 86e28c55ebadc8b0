"""The annotation page under attack: forged requests, and crawled pages that want to be more than text."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from annotation_page import HOSTS, Client, make_client, make_store, number_of, write_pages
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.corpus.annotation import formats, katex, render, security
from mathpipe.corpus.annotation.store import Store

SCRIPTS = (
    "<script>window.hit=1;alert(1)</script><img src=//evil.example/x onerror=alert(1)>"
    "<svg onload=alert(1)><iframe srcdoc='<script>top.hit=1</script>'>"
)
PREFIXES = [
    'evil.example/"onmouseover="alert(1)/', "evil.example/<script>alert(1)</script>/", "evil.example/'><img src=x onerror=alert(1)>/",
    "evil.example/{{ 7 * 7 }}{% raw %}/", "evil.example/a\u202egpj.exe/", "evil.example/%3Cscript%3E/", "javascript:alert(1)/",
    "data:text/html,<b>x/",
]  # fmt: skip
FORMULAS = [
    r"\href{javascript:alert(1)}{x}", r"\url{javascript:alert(1)}", r"\htmlStyle{background:url(//evil.example/)}{x}",
    r"\htmlData{onload=alert(1)}{x}", r"\includegraphics{http://evil.example/x.png}", r"\text{</math><script>alert(1)</script>}",
    r"</annotation></math><img src=x onerror=alert(1)>", r"\color{red\" onclick=\"alert(1)}x",
    r"\rule{99999em}{99999em}", r"\kern{-9999em}x",
]  # fmt: skip
KILLERS = ["{" * 5000 + "x" + "}" * 5000, "{" * 900 + "x" + "}" * 900, r"\sqrt{" * 150, r"\def\a#1{\b{#1#1}}\def\b#1{\a{#1#1}}\a{x}"]
"""Under these the engine dies, or would go on and on."""
URLS = [
    "javascript:alert(1)", "data:text/html,<script>alert(1)</script>", 'https://evil.example/"><script>alert(1)</script>',
    "https://evil.example/\u202egpj", "http://[", "//evil.example/", "https://evil.example/' onclick='alert(1)",
]  # fmt: skip
FORBIDDEN = {"script", "img", "iframe", "object", "embed", "svg", "link", "style", "base", "form", "a", "input", "video", "audio"}


class Tags(HTMLParser):
    """Names of the elements and attributes of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.fixture(scope="module")
def renderers() -> Iterator[katex.Renderers]:
    made = katex.Renderers(1)
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path, [*HOSTS[:2], *PREFIXES], pages=[(url, SCRIPTS) for url in URLS])


@pytest.fixture
def client(store: Store) -> Client:
    return make_client(store)


def form(client: Client, store: Store) -> dict[str, str]:
    client.get("/")
    return {"csrf": client.cookies[security.CSRF], "version": str(store.row(number_of(store, HOSTS[0]), "ann").version), "verdict": "math"}


# forged requests


@pytest.mark.parametrize("address", ["/", "/q/1", "/text/1?queue=1", "/static/keys.js", "/login", "/missing"])
def test_every_response_is_hardened(client: Client, address: str) -> None:
    headers = client.get(address).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "base-uri 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"
    assert ("frame-ancestors 'self'; sandbox" in policy) == address.startswith("/text") and (
        "frame-ancestors 'none'" in policy
    ) != address.startswith("/text")


@pytest.mark.parametrize("host", ["evil.example", "testserver.evil.example", "testserver:80:80", "", "127.0.0.1@evil.example"])
def test_other_host_names_are_refused(client: Client, host: str) -> None:
    answer = client.get("/q/1", headers={"Host": host})
    assert answer.status_code == 400 and "ada" not in answer.text and "content-security-policy" in answer.headers


def test_the_port_does_not_count(client: Client) -> None:
    assert client.get("/q/1", headers={"Host": "TestServer:8765"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://testserver:81"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_posts_of_other_origins_are_refused(client: Client, store: Store, headers: dict[str, str]) -> None:
    answer = client.post(f"/p/{number_of(store, HOSTS[0])}", data=form(client, store), headers=headers)
    assert answer.status_code == 403 and store.log(1)[1] == 0


@pytest.mark.parametrize("csrf", ["", "x", "é", "0" * 32, None])
def test_posts_without_the_token_are_refused(client: Client, store: Store, csrf: str | None) -> None:
    fields = form(client, store)
    fields.pop("csrf")
    fields |= {"csrf": csrf} if csrf is not None else {}
    question = number_of(store, HOSTS[0])
    for address in (f"/p/{question}", "/q/1/undo", "/q/1/finish", "/q/1/reopen", "/q/1/import", "/who", "/login", "/logout"):
        assert client.post(address, data=fields).status_code == 403, address
    client.cookies.clear()
    assert client.post(f"/p/{question}", data=fields | {"csrf": csrf or ""}).status_code == 403
    assert store.log(1)[1] == 0 and not store.queues()[0].is_finished


def test_the_token_may_come_as_a_header(client: Client, store: Store) -> None:
    fields = form(client, store)
    answer = client.post(
        f"/p/{number_of(store, HOSTS[0])}", data=fields, headers={"X-CSRF-Token": fields.pop("csrf"), "Origin": "http://testserver"}
    )
    assert answer.status_code == 200 and store.log(1)[1] == 1


def test_what_changes_something_is_no_get(client: Client, store: Store) -> None:
    for address in ("/q/1/undo", "/q/1/reopen", "/q/1/import", "/who", "/logout"):
        assert client.get(address).status_code == 405, address
    client.get(f"/p/{number_of(store, HOSTS[0])}?verdict=math")
    assert store.log(1)[1] == 0


def test_large_bodies_are_refused(client: Client, store: Store) -> None:
    fields = form(client, store)
    assert client.post("/who", data=fields | {"who": "x" * (security.MAX_FORM_BYTES + 1)}).status_code == 413
    assert client.post("/q/1/import", headers={"Content-Length": str(security.MAX_IMPORT_BYTES + 1)}, content=b"").status_code == 413
    assert client.post("/who", content=iter([b"who=x"])).status_code == 411


def test_a_proxy_with_tls_may_stand_before_the_page(store: Store) -> None:
    client = make_client(store, public_url="https://annotate.example:8443/")
    answer = client.get("/login")
    assert "; Secure" in answer.headers["set-cookie"]
    fields = form(make_client(store), store) | {"csrf": "x"}
    address, cookie = f"/p/{number_of(store, HOSTS[0])}", {"Cookie": f"{security.CSRF}=x"}
    for origin in ("https://annotate.example", "http://annotate.example:8443", "https://annotate.example:x", "", "null"):
        assert client.post(address, data=fields, headers=cookie | {"Origin": origin}).status_code == 403, origin
    ours = {"Origin": "https://annotate.example:8443", "Sec-Fetch-Site": "same-origin"}
    assert client.post(address, data=fields, headers=cookie | ours, follow_redirects=False).status_code == 303
    assert client.get("/q/1", headers={"Host": "annotate.example:8443"}).status_code == 200 and store.log(1)[1] == 1
    assert "Secure" not in make_client(store).get("/login").headers["set-cookie"]


@pytest.mark.parametrize(
    ("host", "local", "status"),
    [("10.0.0.7:8765", "10.0.0.7", 200), ("[fe80:0::1]:80", "fe80::1", 200), ("10.0.0.7", "::ffff:10.0.0.7", 200),
     ("10.0.0.8", "10.0.0.7", 400), ("evil.example", "evil.example", 400), ("10.0.0.7", "", 400)],
)  # fmt: skip
def test_the_address_that_was_connected_to_is_this_servers(client: Client, host: str, local: str, status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await client.app(scope | {"server": (local, 8765)} if local else scope, receive, send)

    assert Client(app).get("/q/1", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("address", ["/q/1/import", "/p/10000000", "/logout", "/who", "/q/1/finish"])
def test_the_body_of_a_stranger_is_not_read(store: Store, address: str) -> None:
    was_read, client = [], make_client(store, needs_login=True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def watched() -> Any:
            was_read.append(True)
            return await receive()

        await client.app(scope, watched, send)

    answer = Client(app).post(address, content=b"x" * 100, follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/login" and not was_read


@pytest.mark.parametrize("size", [str(security.MAX_FORM_BYTES + 1), "9" * 30, "9" * 5000])
def test_the_length_that_is_claimed_decides(client: Client, size: str) -> None:
    assert client.post("/q/1/undo", headers={"Content-Length": size}, content=b"").status_code == 413


@pytest.mark.parametrize("number", ["9" * 18, "9" * 19, "9" * 5000, "18446744073709551617"])
def test_numbers_in_addresses_may_be_of_any_size(client: Client, number: str) -> None:
    for address in ("/q/{}", "/q/{}/bar", "/q/{}/decisions.jsonl", "/p/{}", "/text/{}?queue=1"):
        assert client.get(address.format(number)).status_code == 404, address


@pytest.mark.parametrize("name", [security.CSRF, security.WHO])
def test_cookies_stay_on_this_site_and_away_from_scripts(client: Client, name: str) -> None:
    answers = [client.get("/"), client.submit("/q/1", "/who", who="bo")]
    cookies = [cookie for answer in answers for each in (answer, *answer.history) for cookie in each.headers.get_list("set-cookie")]
    [cookie] = [cookie for cookie in cookies if cookie.startswith(name)][:1]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie


# crawled pages


@pytest.mark.parametrize("address", ["/q/1", "/q/1/log", "/q/1/unsettled", "/q/1/finish", "/q/1/agreement", "question"])
def test_prefixes_notes_and_names_are_only_text(client: Client, store: Store, address: str) -> None:
    clean = Tags(client.get("/q/1/finish").text + client.get(f"/p/{number_of(store, HOSTS[0])}").text)
    for prefix in PREFIXES:
        store.decide(number_of(store, prefix), SCRIPTS, "flag", SCRIPTS)
        store.suggest(1, prefix, SCRIPTS, "math", SCRIPTS)
    addresses = [f"/p/{number_of(store, prefix)}" for prefix in PREFIXES] if address == "question" else [address]
    for each in addresses:
        page = client.get(each).text
        tags = Tags(page)
        assert not {name for name in tags.attributes if name.startswith("on")}, each
        assert not {"img", "svg", "object"} & tags.names and "srcdoc" not in tags.attributes, each
        assert page.count("<script") == 2 and page.count("<iframe") <= 1 and "\u202e" not in page, each
        assert tags.names - clean.names <= {"article", "q", "time", "code", "select", "option"}, each


def test_only_web_addresses_become_links(client: Client, store: Store, tmp_path: Path) -> None:
    page = client.get(f"/p/{number_of(store, HOSTS[0])}").text  # samples: a javascript: address first
    assert 'href="javascript:' not in page and 'href="data:' not in page and "javascript:alert(1)" in page
    assert [url for url in URLS if formats.is_web(url)] == [url for url in URLS if url.startswith("https://")]


def test_pages_are_only_text(renderers: katex.Renderers) -> None:
    text = SCRIPTS + "\n\n" + "\n\n".join(f"\\({formula}\\) and \\[{formula}\\]" for formula in FORMULAS)
    shown, left_out = render.to_html(text, renderers)
    tags = Tags(shown)
    assert not tags.names & FORBIDDEN and not {name for name in tags.attributes if name.startswith("on")} and left_out == ""
    assert not tags.attributes & {"href", "src", "style", "xlink:href", "id"}
    assert html.escape(SCRIPTS) in shown


def test_equation_arrays_of_old_latex_are_rendered(renderers: katex.Renderers) -> None:
    answer = renderers.mathml([(r"\begin{eqnarray*} a & = & b \\ c & = & d \end{eqnarray*}", True)])[0]
    assert answer and answer.count("<mtr>") == 2 and answer.count("<mtd>") == 6


def test_formulas_that_kill_the_engine_stay_source_and_cost_only_themselves(renderers: katex.Renderers) -> None:
    start = time.monotonic()
    for killer in KILLERS:
        answers = renderers.mathml([("a^2", False), (killer, False), ("b^2", True)])
        assert answers[0] and answers[2] and (answers[1] is None or answers[1].startswith("<span"))
    assert renderers.mathml([(KILLERS[0], False)] * 50 + [("x", False)]) == [None] * 51  # gives up after MAX_DEATHS
    assert renderers.mathml([("x", False)])[0] and time.monotonic() - start < 20


def test_slow_formulas_end(renderers: katex.Renderers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(katex, "MAX_SECONDS", 0.05)
    start = time.monotonic()
    assert None in renderers.mathml([(r"\sqrt{\frac{a}{b}}" * 100 + str(number), False) for number in range(300)])
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("formula", "shown"),
    [("a\x00b", "<code>\\(a\ufffdb\\)</code>"), ("\ud800", "<code>\\(\ufffd\\)</code>"), (r"\frac{a", r"<code>\(\frac{a\)</code>"),
     ("x" * 2001, f"<code>\\({'x' * 2001}\\)</code>")],
)  # fmt: skip
def test_formulas_that_cannot_be_rendered_stay_source(renderers: katex.Renderers, formula: str, shown: str) -> None:
    assert render.to_html(f"\\({formula}\\)", renderers)[0] == f"<p>{shown}</p>"


def test_long_texts_are_cut_and_say_so(renderers: katex.Renderers) -> None:
    start = time.process_time()
    shown, left_out = render.to_html("".join(f"\\(x_{{{number:06}}}\\) " for number in range(350_000)), renderers)
    assert left_out == "the first 20,000 of 5,250,000 characters; the first 300 of 1,333 formulas rendered"
    assert shown.count("<math") == 300 and shown.count("<code>") == 1033
    for text in ("\\(" * 2_500_000, "\\" * 5_000_000, "\n" * 5_000_000, " \n" * 2_500_000, "a   " * 1_250_000, "{" * 5_000_000):
        assert len(render.to_html(text, renderers)[0]) < 100_000
    assert time.process_time() - start < 5


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["\\(", "\\)", "\\[", "\\]", "\\", "<", ">", "&", "x", "\n", "\n\n", "    ", "\x00", "\ud800", "$", '"'])).map(
        "".join
    )
)
def test_any_text_is_shown_whole(text: str) -> None:
    class NoEngine(katex.Renderers):
        def mathml(self, formulas: object) -> list[str | None]:
            return [None] * len(formulas)  # type: ignore[arg-type]

    shown, _ = render.to_html(text, NoEngine(0))
    assert not Tags(shown).names - {"p", "pre", "code"}
    plain = html.unescape(
        shown.replace("<p>", "").replace("</p>", "").replace("<pre>", "").replace("</pre>", "").replace("<code>", "").replace("</code>", "")
    )
    assert "".join(plain.split()) == "".join(render.clean(text).split())


def test_bytes_that_are_no_utf8_are_shown(tmp_path: Path) -> None:
    texts, pages = (
        render.Texts(),
        write_pages(tmp_path, [("https://a.example/", b"caf\xe9 \xff\xed\xa0\x80 ok"), ("https://b.example/", "b")]),
    )
    shown, _ = texts.html(pages, 1)
    assert shown.startswith("<p>caf\ufffd") and shown.endswith(" ok</p>")


def test_hidden_and_reordering_characters_are_shown_by_their_code() -> None:
    assert render.seen("a\u202eb\u200bc\x07d\u2066e\ufeff") == "a␣202Eb␣200Bc␣0007d␣2066e␣FEFF"
    assert render.seen("naïve שלום 漢") == "naïve שלום 漢"


def test_an_import_of_odd_json_is_refused_or_recorded_as_text(client: Client, store: Store) -> None:
    fields = {"csrf": form(client, store)["csrf"]}
    for prefix in ("\ud800.example/", "a\x00.example/"):
        line = json.dumps({"prefix": prefix, "decision": "math", "reason": SCRIPTS, "who": SCRIPTS})
        answer = client.post("/q/1/import", data=fields, files={"file": ("x.jsonl", line)})
        assert answer.status_code in (200, 400)
        assert client.get("/q/1/log").status_code == 200 and client.get("/q/1/decisions.jsonl").status_code == 200
    for body in ("[" * 100_000, "1" * 5_000, '{"prefix": 1, "decision": "math"}'):
        assert client.post("/q/1/import", data=fields, files={"file": ("x.jsonl", body)}).status_code == 400, body[:40]
