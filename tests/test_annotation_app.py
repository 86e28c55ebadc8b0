"""The annotation page without a browser: every route, every error, and that it needs no JavaScript."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from annotation_page import CHILD, HOSTS, Client, make_client, make_store, number_of

from mathpipe.corpus.annotation import app, formats, render, security, views
from mathpipe.corpus.annotation.records import Question
from mathpipe.corpus.annotation.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


@pytest.fixture
def client(store: Store) -> Client:
    return make_client(store)


def test_a_queue_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    page = make_client(Store(str(tmp_path / "empty.sqlite"))).get("/")
    assert page.status_code == 200 and "Nothing to decide yet" in page.text and '<meta http-equiv="refresh" content="5">' in page.text


def test_domains_come_by_expected_gain_with_their_figures(client: Client) -> None:
    page = client.get("/")
    shown = [
        prefix.replace("<wbr>", "") for prefix in re.findall(r'<th scope="row"><a href="/p/\d+"><bdi class="prefix">(.*?)</bdi>', page.text)
    ]
    assert shown == HOSTS  # ada: 50 uncollected × 50 % = 25, then 50 × 49/99 …
    row = page.text[page.text.index("bohr") :]
    figures = re.findall(r'<td class="n" data-label="(\w+)">(.*?)</td>', row, re.DOTALL)[:5]
    plain = {name: re.sub(r"<[^>]*>|\s+", " ", cell).split() for name, cell in figures}
    assert plain == {"gain": ["25"], "pages": ["99"], "collected": ["49", "49", "%"], "score": ["0.50"], "tokens": ["1k"]}
    assert "0</b> of 11 domains done" in page.text and "time left: not known yet" in page.text


@pytest.mark.parametrize(
    ("query", "number"),
    [
        ("state=open", 12),
        ("state=left", 11),
        ("state=math", 0),
        ("search=notes", 1),
        ("search=EXAMPLE", 12),
        ("search=%25", 0),
        ("order=prefix", 11),
    ],
)
def test_filter_and_search(client: Client, query: str, number: int) -> None:
    assert client.get(f"/q/1?{query}").text.count("<tr data-row>") == number


def test_paging(tmp_path: Path) -> None:
    client = make_client(make_store(tmp_path, [f"host{number:03d}.example/" for number in range(120)]))
    first = client.get("/q/1?order=prefix")
    assert first.text.count("<tr data-row>") == 50 and "1–50 of 120" in first.text and 'data-key="["' not in first.text
    last = client.get("/q/1?order=prefix&offset=100")
    assert last.text.count("<tr data-row>") == 20 and "101–120 of 120" in last.text and 'data-key="]"' not in last.text
    assert 'href="?order=prefix&amp;offset=50" data-key="["' in last.text


def test_a_prefix_shows_tree_samples_and_suggestion(client: Client, store: Store) -> None:
    store.suggest(1, HOSTS[1], "small-model", "not_math", "<b>mostly news</b>")
    page = client.get(f"/p/{number_of(store, HOSTS[1])}").text
    assert "suggestion</span> <b>policy</b>: math" in page and "&lt;b&gt;mostly news&lt;/b&gt;" in page
    child = client.get(f"/p/{number_of(store, CHILD)}?sample=2").text
    assert re.search(r'<a href="/p/\d+" data-key="h"><bdi class="prefix">ada.example/', child)
    assert 'src="/text/4294967297?queue=1"' in child and "not collected, score 0.420" in child
    assert '<iframe sandbox="" ' in child
    parent = client.get(f"/p/{number_of(store, HOSTS[0])}").text
    assert "✓ collected, score 0.910" in parent and f'href="/p/{number_of(store, CHILD)}"' in parent
    assert '<a href="https://ada.example/a.html" rel="noreferrer noopener" target="_blank"' in parent


def test_text_of_a_sample_has_its_formulas_and_code(client: Client) -> None:
    page = client.get("/text/1?queue=1")
    assert page.text.count("<math ") == 2 and 'display="block"' in page.text and "<pre>&gt;&gt;&gt; 1 + 1\n2</pre>" in page.text
    assert page.headers["content-security-policy"] == security.FRAME_POLICY and "sandbox" in security.FRAME_POLICY
    missing = client.get("/text/77?queue=1")
    assert missing.status_code == 404 and "not among the pages" in missing.text
    assert missing.headers["content-security-policy"] == security.FRAME_POLICY


def test_pages_that_were_removed_are_said_to_be(client: Client, store: Store, tmp_path: Path) -> None:
    for file in (tmp_path / "pages" / "data").glob("*.parquet"):
        file.unlink()
    assert "no longer at" in client.get("/text/1?queue=1").text
    assert "not among the pages any more" in client.get(f"/p/{number_of(store, HOSTS[0])}").text


def test_slow_texts_keep_nobody_waiting(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, started = threading.Event(), threading.Semaphore(0)

    def slow(self: render.Texts, pages: Path, page_id: int) -> tuple[str, str]:
        started.release()
        assert may_end.wait(20)
        return "", ""

    monkeypatch.setattr(render.Texts, "html", slow)
    with client, ThreadPoolExecutor(10) as pool:
        texts = [pool.submit(client.get, "/text/1?queue=1") for _ in range(10)]
        assert started.acquire(timeout=10)
        shown = client.get("/q/1")
        assert shown.status_code == 200 and not any(text.done() for text in texts)
        may_end.set()
        assert [text.result().status_code for text in texts] == [200] * 10


def test_decide_goes_on_with_the_next_and_undo_goes_back(client: Client, store: Store) -> None:
    first = client.get("/q/1/next")
    assert HOSTS[0] in first.text.replace("<wbr>", "")
    following = client.decide(number_of(store, HOSTS[0]), "math", "lecture notes")
    assert following.status_code == 200 and str(following.url).endswith(f"/p/{number_of(store, HOSTS[1])}")
    [decision], _ = store.log(1)
    assert (decision.prefix, decision.who, decision.verdict, decision.note) == (HOSTS[0], "ann", "math", "lecture notes")
    assert "math <small>inherited</small>" in client.get(f"/p/{number_of(store, CHILD)}").text
    back = client.submit("/q/1", "/q/1/undo")
    assert str(back.url).endswith(f"/p/{number_of(store, HOSTS[0])}?notice=undone") and "Undone." in back.text
    assert store.row(number_of(store, HOSTS[0]), "ann").state == "open"
    nothing = client.post("/q/1/undo", data={"csrf": client.cookies[security.CSRF]})
    assert "no decision left to undo" in nothing.text


@pytest.mark.parametrize("verdict", ["math", "not_math", "skip", "flag"])
def test_every_verdict_is_recorded(client: Client, store: Store, verdict: str) -> None:
    client.decide(number_of(store, HOSTS[2]), verdict)
    assert store.row(number_of(store, HOSTS[2]), "ann").state == verdict


def test_conflict_shows_what_the_other_said_and_writes_nothing(client: Client, store: Store) -> None:
    question = number_of(store, HOSTS[0])
    form = {"csrf": "", "version": "0", "kind": "decide", "verdict": "not_math", "note": "mine"}
    client.get("/")
    form["csrf"] = client.cookies[security.CSRF]
    store.decide(question, "bo", "math", "theirs")
    answer = client.post(f"/p/{question}", data=form)
    assert answer.status_code == 409 and "<b>bo</b> decided" in answer.text and "theirs" in answer.text and "<html" in answer.text
    part = client.post(f"/p/{question}", data=form, headers={"HX-Request": "true"})
    assert part.status_code == 409 and "<html" not in part.text and "<b>bo</b> decided" in part.text
    assert len(store.log(1)[0]) == 1
    version = re.search(r'name="version" value="(\d+)"', answer.text)
    assert version
    client.post(f"/p/{question}", data=form | {"version": version[1]})
    assert store.row(question, "ann").state == "disagreement"
    unsettled = client.get("/q/1/unsettled").text
    assert "theirs" in unsettled and "mine" in unsettled and '<b class="count">1</b>' in unsettled
    settled = client.submit("/q/1/unsettled", "/p/.*?", verdict="math")
    assert "Nothing to settle" in settled.text and store.row(question, "ann").state == "math"


def test_a_second_annotator_is_blind_until_both_have_decided(tmp_path: Path) -> None:
    store = make_store(tmp_path, overlap_frac=1.0)
    ann, bo, question = make_client(store, "ann"), make_client(store, "bo"), number_of(store, HOSTS[1])
    ann.decide(question, "math", "secret reason")
    for address in (f"/p/{question}", "/q/1", "/q/1/log", "/q/1/unsettled"):
        page = bo.get(address).text
        assert "secret reason" not in page and "∑</i> math</span>" not in page, address
    bo.decide(question, "not_math")
    assert store.row(question, "ann").state == "disagreement" and "secret reason" in bo.get(f"/p/{question}").text
    agreement = bo.get("/q/1/agreement").text
    assert "ann and bo" in agreement and "0 %" in agreement


def test_log_is_filtered_by_person_and_prefix(client: Client, store: Store) -> None:
    for place, who in enumerate(["ann", "bo", "bo"]):
        store.decide(number_of(store, HOSTS[place]), who, "math")
    assert client.get("/q/1/log").text.count("<time") == 3
    assert client.get("/q/1/log?by=bo").text.count("<time") == 2
    assert client.get("/q/1/log?prefix=cantor").text.count("<time") == 1
    assert "No decisions with this filter" in client.get("/q/1/log?by=nobody").text


def test_export_and_import_are_the_same_format(client: Client, store: Store, tmp_path: Path) -> None:
    store.decide(number_of(store, HOSTS[0]), "ann", "math", "notes é")
    store.decide(number_of(store, HOSTS[1]), "bo", "not_math")
    store.decide(number_of(store, HOSTS[2]), "bo", "skip")
    body = client.get("/q/1/decisions.jsonl")
    lines = [json.loads(line) for line in body.text.splitlines()]
    assert [(line["prefix"], line["decision"], line["reason"], line["who"]) for line in lines] == [
        (HOSTS[0], "math", "notes é", "ann"), (HOSTS[1], "not_math", "", "bo"),
    ]  # fmt: skip
    assert "attachment" in body.headers["content-disposition"]
    (tmp_path / "other").mkdir()
    other = make_store(tmp_path / "other")
    second = make_client(other)
    second.get("/q/1/data")
    answer = second.post("/q/1/import", data={"csrf": second.cookies[security.CSRF]}, files={"file": ("d.jsonl", body.content)})
    assert "2 new decisions imported" in answer.text
    assert [(line["prefix"], line["decision"], line["who"]) for line in other.final(1)] == [
        (line["prefix"], line["decision"], "ann") for line in lines
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body", [b"not json", b'{"prefix": "a.org/"}', b'{"prefix": "a.org/", "decision": "maybe"}', b"[1]", b"\xff\xfe", b'"x"']
)
def test_an_import_with_a_bad_line_records_nothing(client: Client, store: Store, body: bytes) -> None:
    client.get("/q/1/data")
    good = b'{"prefix": "ada.example/", "decision": "math", "reason": "", "who": "z"}\n'
    answer = client.post("/q/1/import", data={"csrf": client.cookies[security.CSRF]}, files={"file": ("d.jsonl", good + body)})
    assert answer.status_code == 400 and "nothing was imported" in answer.text and store.log(1)[1] == 0


def test_finish_asks_first_and_ends_the_queue(client: Client, store: Store) -> None:
    asked = client.get("/q/1/finish").text
    assert "<b>11</b> of 11 domains are still open" in asked and "Domains still open" in asked
    done = client.submit("/q/1/finish", "/q/1/finish")
    assert "Round 1 is finished" in done.text and store.queues()[0].is_finished and store.queues()[0].finished_by == "ann"
    late = client.post(f"/p/{number_of(store, HOSTS[0])}", data={"csrf": client.cookies[security.CSRF], "version": "0", "verdict": "math"})
    assert late.status_code == 409 and "Too late" in late.text and store.log(1)[1] == 0
    assert 'name="verdict"' not in client.get(f"/p/{number_of(store, HOSTS[0])}").text
    client.submit("/q/1/finish", "/q/1/reopen")
    assert not store.queues()[0].is_finished


def add_round(store: Store, number: int, profile: str = "tiny") -> int:
    questions = [Question(HOSTS[0], "", 100, 50, 0.5, 1000, ())]
    return store.add_queue(f"{profile}/round{number}.annotate", number, Path("pages"), questions, annotate=f"round{number}.annotate")


def test_people_are_led_to_the_queue_for_which_a_run_waits(client: Client, store: Store) -> None:
    store.finish(1, "ann", "")
    add_round(store, 2)
    assert "Still open: round 2. Go there" in client.get("/q/1").text and client.get("/").url.path == "/q/2"
    assert "no run waits for this queue" in client.get("/q/2").text
    store.reopen(1)
    add_round(store, 3)
    store.stamp(2)
    assert client.get("/").url.path == "/q/2"
    for other in ("/q/1", "/q/3"):
        page = client.get(other).text
        assert "A run waits for decisions in round 2. Go there" in page and "decide anyway, then run it again" in page
        assert 'href="/q/1"' in page and 'href="/q/3"' in page
    waited = client.get("/q/2").text
    assert "Go there" not in waited and "no run waits" not in waited


def test_queues_of_several_profiles_are_told_apart(client: Client, store: Store) -> None:
    add_round(store, 2)
    assert "<summary>round 1</summary>" in client.get("/q/1").text
    add_round(store, 1, "small")
    page = client.get("/q/1").text
    assert "<summary>tiny, round 1</summary>" in page and ">small, round 1<" in page and ">tiny, round 2<" in page


def test_when_all_is_decided_the_run_goes_on_soon_or_now(client: Client, store: Store) -> None:
    number = add_round(store, 2)
    client.get("/")
    assert "run it again, and it goes on" in client.decide(number_of(store, HOSTS[0]), "math").text.lower()
    store.stamp(number)
    client.submit(f"/q/{number}", f"/q/{number}/undo")
    done = client.decide(number_of(store, HOSTS[0]), "math")
    assert "The run goes on in a few seconds; undo <kbd>u</kbd> still works" in done.text and "Nothing is left" in done.text
    ended = client.submit(f"/q/{number}?notice=done", f"/q/{number}/finish")
    assert "is finished" in ended.text and store.queues()[0].finished_by == "ann"
    assert "this queue is finished" in client.get(f"/q/{number}?notice=done").text


def test_a_queue_with_something_to_settle_is_not_said_to_end(client: Client, store: Store) -> None:
    store.stamp(1)
    store.decide(number_of(store, CHILD), "bo", "flag")
    for host in HOSTS[1:]:
        store.decide(number_of(store, host), "bo", "math")
    done = client.decide(number_of(store, HOSTS[0]), "math").text
    assert '1 prefix is to settle</a>; until then the queue does not end by itself' in done and "Go on now" not in done
    asked = client.get("/q/1/finish").text
    assert "does not end by itself before that" in asked and "adds nothing to the seeds, not even below" in asked
    assert "does not end by itself while something is to be settled" in client.get("/q/1/unsettled").text
    settled = client.submit("/q/1/unsettled", "/p/.*?", verdict="math")
    assert "The run goes on in a few seconds" in settled.text
    assert "to settle</a>" not in client.get("/q/1/finish").text


def test_a_spent_budget_is_said(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_decisions=2)
    client = make_client(store)
    store.stamp(1)
    client.decide(number_of(store, HOSTS[0]), "math")
    done = client.decide(number_of(store, HOSTS[1]), "math").text
    assert "The budget is spent." in done and "<b>2</b> of 11 domains done" in done
    late = client.decide(number_of(store, HOSTS[2]), "math")
    assert late.status_code == 409 and "the budget of 2 decisions" in late.text and "nothing was recorded" in late.text


@pytest.mark.parametrize(("who", "said"), [("bo", "was finished by bo"), ("", "was finished by itself: all hosts were decided")])
def test_a_late_decision_is_told_who_or_what_finished(client: Client, store: Store, who: str, said: str) -> None:
    client.get("/")
    store.finish(1, who, "all hosts were decided")
    form = {"csrf": client.cookies[security.CSRF], "version": "0", "verdict": "math"}
    late = client.post(f"/p/{number_of(store, HOSTS[0])}", data=form)
    assert late.status_code == 409 and said in late.text and "nothing was recorded" in late.text
    assert "mathpipe rerun round1.annotate" in client.get("/q/1/finish").text and "reopen</a> it" in client.get("/q/1").text


def test_two_windows_of_one_person_are_a_conflict(client: Client, store: Store) -> None:
    question = number_of(store, HOSTS[0])
    client.decide(question, "math")
    stale = {"csrf": client.cookies[security.CSRF], "version": "0", "kind": "decide", "verdict": "not_math"}
    answer = client.post(f"/p/{question}", data=stale).text
    assert "You have decided on this meanwhile, in another window" in answer and "<b>ann</b> decided" in answer
    assert "Record mine instead" in answer and "Yours replaces what you said before" in answer and "To settle”" not in answer


def test_a_settlement_may_come_too_late(client: Client, store: Store) -> None:
    question = number_of(store, HOSTS[0])
    store.decide(question, "bo", "flag")
    client.get("/")
    form = {"csrf": client.cookies[security.CSRF], "version": "1", "kind": "settle", "verdict": "math"}
    store.decide(question, "cy", "math")
    still = client.post(f"/p/{question}", data=form)  # the flag stands: to be settled as before
    assert still.status_code == 409 and "it replaces all that was said before" in still.text and 'name="kind" value="settle"' in still.text
    store.decide(question, "bo", "not_math", kind="settle")
    late = client.post(f"/p/{question}", data=form).text
    assert "<b>bo</b> settled" in late and 'name="kind" value="decide"' in late and "If the two differ, both stand" in late
    version = re.search(r'name="version" value="(\d+)"', late)
    assert version
    client.post(f"/p/{question}", data=form | {"kind": "decide", "version": version[1]})
    assert store.row(question, "ann").state == "disagreement"


def last(client: Client) -> str:
    shown = re.search(r'<span>(Your last:|You undid:).*?(?:<bdi class="prefix">(.*?)</bdi>|(a whole import))', client.get("/q/1").text)
    assert shown
    return f"{shown[1]} {shown[2] or shown[3]}"


def test_the_bar_names_what_was_done_last(client: Client, store: Store) -> None:
    for host in HOSTS[:3]:
        client.decide(number_of(store, host), "math")
    assert last(client) == f"Your last: {HOSTS[2]}"
    for host in (HOSTS[2], HOSTS[1]):
        client.submit("/q/1", "/q/1/undo")
        assert last(client) == f"You undid: {host}"
    client.decide(number_of(store, HOSTS[4]), "math")
    client.submit("/q/1", "/q/1/undo")
    assert last(client) == f"You undid: {HOSTS[4]}"
    client.submit("/q/1", "/q/1/undo")
    assert last(client) == f"You undid: {HOSTS[0]}"
    file = "".join(json.dumps({"prefix": host, "decision": "math"}) + "\n" for host in HOSTS)
    client.post("/q/1/import", data={"csrf": client.cookies[security.CSRF]}, files={"file": ("d.jsonl", file)})
    assert last(client) == "Your last: a whole import" and len(store.final(1)) == 11
    client.submit("/q/1", "/q/1/undo")
    assert last(client) == "You undid: a whole import" and not store.final(1)


@pytest.mark.parametrize(
    ("address", "status"),
    [("/q/9", 404), ("/p/9", 404), ("/text/1?queue=9", 404), ("/text/1", 404), ("/text/1?queue=x", 400), ("/nothing", 404),
     ("/q/1?state=x", 400), ("/q/1?order=x", 400), ("/q/1?offset=-1", 400), ("/q/1?offset=99999999999999999999", 400),
     ("/static/../app.py", 404), ("/q/1/next?after=9", 404)],
)  # fmt: skip
def test_bad_addresses_are_answered_with_a_page(client: Client, address: str, status: int) -> None:
    answer = client.get(address)
    assert answer.status_code == status and "content-security-policy" in answer.headers


@pytest.mark.parametrize(
    "fields",
    [{"verdict": "maybe"}, {"verdict": ""}, {"version": "x"}, {"version": ""}, {"kind": "import"}, {"kind": "settle", "verdict": "flag"}],
)
def test_bad_forms_are_refused(client: Client, store: Store, fields: dict[str, str]) -> None:
    client.get("/")
    form = {"csrf": client.cookies[security.CSRF], "version": "0", "kind": "decide", "verdict": "math"} | fields
    assert client.post(f"/p/{number_of(store, HOSTS[0])}", data=form).status_code == 400 and store.log(1)[1] == 0


def test_a_failure_of_the_server_is_a_page_with_all_headers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(make_client(store).app, raise_server_exceptions=False)
    monkeypatch.setattr(Store, "agreement", lambda self, queue: 1 / 0)
    answer = client.get("/q/1/agreement")
    assert answer.status_code == 500 and "Something failed" in answer.text and "ZeroDivision" not in answer.text
    assert answer.headers["content-security-policy"] == security.PAGE_POLICY


def test_htmx_gets_parts_and_browsers_get_pages(client: Client) -> None:
    part = client.get("/q/1", headers={"HX-Request": "true"}).text
    assert "<html" not in part and '<main id="main"' in part and '<header id="head"' in part and "<title>" in part
    assert "<html" in client.get("/q/1").text
    assert client.get("/q/1/bar").text.count('id="bar"') == 1


def test_names(client: Client, store: Store) -> None:
    answer = client.submit("/", "/who", who="Zoë Łukasz")
    assert "Zoë Łukasz" in answer.text
    client.decide(number_of(store, HOSTS[0]), "math")
    assert store.log(1)[0][0].who == "Zoë Łukasz"
    for name in ("", " ", "x" * 41, "a\nb", "<b>", "a\u202eb"):
        assert client.submit("/q/1", "/who", who=name).status_code == 400, name


def test_login(store: Store) -> None:
    token = store.invite("bo")
    client = make_client(store, needs_login=True)
    for address in ("/", "/q/1", f"/p/{number_of(store, HOSTS[0])}", "/text/1?queue=1", "/q/1/decisions.jsonl"):
        assert client.get(address).url.path == "/login", address
    assert client.get("/static/style.css").status_code == 200
    refused = client.submit("/login?next=/q/1/log", "/login", token="wrong")
    assert refused.status_code == 403 and "nobody's" in refused.text and client.get("/q/1").url.path == "/login"
    entered = client.submit("/login?next=/q/1/log", "/login", token=token)
    assert entered.url.path == "/q/1/log" and "<span>bo</span>" in entered.text
    cookie = entered.history[0].headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
    client.decide(number_of(store, HOSTS[0]), "math")
    assert store.log(1)[0][0].who == "bo"
    assert client.post("/who", data={"csrf": client.cookies[security.CSRF], "who": "ann"}).status_code == 403
    store.invite("bo")  # a new token: the old one ends
    assert client.get("/q/1").url.path == "/login"
    client.submit("/login", "/login", token=store.invite("bo"))
    client.post("/logout", data={"csrf": client.cookies[security.CSRF]})
    assert client.get("/q/1").url.path == "/login"


def test_login_is_asked_for_once_somebody_was_invited(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LOGIN_S", 0.0)
    client = make_client(store, needs_login=lambda: bool(store.annotators()))
    assert client.get("/q/1").url.path == "/q/1"
    token = store.invite("bo")
    assert client.get("/q/1").url.path == "/login"
    assert client.submit("/login?next=/q/1/log", "/login", token=token).url.path == "/q/1/log"


def test_whether_to_log_in_is_not_asked_at_every_request(store: Store) -> None:
    asked = []
    client = make_client(store, needs_login=lambda: asked.append(True) or False)
    for _ in range(5):
        client.get("/q/1")
    assert asked == [True]


def test_login_leads_to_this_server_only() -> None:
    for target in ("//evil.org", "https://evil.org", "/\\evil.org", "/q/1?x=//evil.org", "javascript:alert(1)", "/../x y"):
        assert views.local(target) == "/", target
    assert views.local("/q/1/log") == "/q/1/log"


def test_figures_for_people() -> None:
    assert [formats.short(value) for value in (0, 999, 1000, 999_499, 1_234_567, 120e9)] == ["0", "999", "1k", "999k", "1.23M", "120B"]
    assert [formats.percent(value) for value in (0, 0.004, 0.5, 1)] == ["0 %", "0.4 %", "50 %", "100 %"]
