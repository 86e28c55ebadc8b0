"""The annotation page in Chromium: by keyboard, without JavaScript, by two people, against hostile pages, narrow and wide."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from annotation_page import CHILD, HOSTS, make_store, number_of
from test_annotation_hostile import FORMULAS, KILLERS, PREFIXES, SCRIPTS

from mathpipe.corpus.annotation.app import make_app
from mathpipe.corpus.annotation.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@dataclass
class Served:
    """A server over a store, and the browser's pages that were opened on it."""

    browser: Any
    store: Store
    url: str

    def open(self, path: str = "/", who: str = "ann", **options: Any) -> Any:
        """A page of a person with cookies of their own; it may not ask for anything elsewhere."""
        context = self.browser.new_context(**options)
        context.set_default_timeout(8000)
        context.add_cookies([{"name": "mathpipe_who", "value": who, "url": self.url}])
        page = context.new_page()
        page.seen = {"dialogs": [], "foreign": [], "errors": []}
        page.on("dialog", lambda dialog: (page.seen["dialogs"].append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(self.url) or page.seen["foreign"].append(request.url))
        page.on("pageerror", lambda error: page.seen["errors"].append(str(error)))
        page.goto(self.url + path)
        return page


@pytest.fixture
def serve(browser: Any) -> Iterator[Any]:
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(store: Store, *, needs_login: bool = False) -> Served:
        listener = socket.create_server(("127.0.0.1", 0))
        app = make_app(store, needs_login=needs_login, who="nobody", hosts=["127.0.0.1"])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return Served(browser, store, f"http://127.0.0.1:{listener.getsockname()[1]}")

    yield start
    for context in browser.contexts:
        context.close()
    for server, thread in running:
        server.should_exit = True
        thread.join()


def heading(page: Any) -> str:
    return page.locator("#main h1").inner_text()


def press(page: Any, *keys: str) -> str:
    """Press keys, wait until the page has another heading, return it."""
    before = heading(page)
    for key in keys:
        page.keyboard.press(key)
    wait(lambda: heading(page) != before)
    return heading(page)


def wait(condition: Any, seconds: float = 8.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_ten_prefixes_by_keyboard_undo_settle_finish(serve: Any, tmp_path: Path) -> None:
    site = serve(make_store(tmp_path))
    page = site.open()
    assert press(page, "Enter") == HOSTS[0]
    for place, key in enumerate("mnsmnmnmnf"):
        if place == 3:
            page.keyboard.press("e")
            page.keyboard.type("mns: a note, not verdicts")
            page.keyboard.press("Enter")
        assert press(page, key) == HOSTS[place + 1]
    assert site.store.progress(1).num_decisions == 10
    assert press(page, "u") == HOSTS[9] and press(page, "u") == HOSTS[8]
    assert press(page, "m") == HOSTS[9]  # was: not math
    assert press(page, "f") == HOSTS[10]
    assert press(page, "g", "d") == "Disagreements and flags to settle"
    page.keyboard.press("j")
    assert press(page, "l") == HOSTS[9]
    press(page, "n")
    press(page, "g", "f")
    page.get_by_role("button", name="Finish and let the loop go on").press("Enter")
    wait(lambda: heading(page) == "Round 1 is finished")
    decided = {HOSTS[place]: "math" if key == "m" else "not_math" for place, key in enumerate("mn-mnmnmmn") if key != "-"}
    assert {line["prefix"]: line["decision"] for line in site.store.final(1)} == decided
    assert [line["reason"] for line in site.store.final(1) if line["prefix"] == HOSTS[3]] == ["mns: a note, not verdicts"]
    assert page.seen == {"dialogs": [], "foreign": [], "errors": []}


def test_lists_trees_samples_and_search_by_keyboard(serve: Any, tmp_path: Path) -> None:
    page = serve(make_store(tmp_path)).open()
    for _ in range(3):
        page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.innerText") == HOSTS[1]
    page.keyboard.press("k")
    assert press(page, "l") == HOSTS[0]
    page.keyboard.press("2")
    page.wait_for_selector("text=not collected, score 0.420")
    assert page.frame_locator("iframe").locator("body").inner_text() == "plain text"
    page.keyboard.press("j")
    assert press(page, "l") == CHILD and press(page, "h") == HOSTS[0] and press(page, "h").startswith("Which of these")
    page.keyboard.press("/")
    page.keyboard.type("notes")
    wait(lambda: page.locator("tr[data-row]").count() == 1)
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.get_by_text("undo, as often as you like").wait_for(state="visible")
    page.keyboard.press("?")
    page.get_by_text("undo, as often as you like").wait_for(state="hidden")
    for key, title in {
        "l": "Who decided what",
        "a": "Agreement",
        "i": "Import and export",
        "q": "Which of these hold mathematics?",
    }.items():
        assert press(page, "g", key) == title
    page.go_back()
    wait(lambda: heading(page) == "Import and export")
    assert page.seen["errors"] == []


def test_settle_finish_reopen_import_and_rename_by_keyboard(serve: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for host in HOSTS[:3]:
        store.decide(number_of(store, host), "bo", "flag")
    file, chosen = tmp_path / "decisions.jsonl", []
    file.write_text('{"prefix": "klein.example/", "decision": "math"}')
    page = serve(store).open("/q/1/unsettled")
    page.on("filechooser", lambda chooser: (chooser.set_files(file), chosen.append(True)))
    page.keyboard.press("m")  # nothing is chosen: nothing happens
    for _ in range(2):
        page.keyboard.press("j")
    for key in ("e", "d", "o", "n", "e", "Enter", "n"):
        page.keyboard.press(key)
    wait(lambda: page.locator("article").count() == 2)
    assert [(line["prefix"], line["decision"], line["reason"]) for line in store.final(1)] == [(HOSTS[1], "not_math", "done")]
    page.keyboard.press("j")
    page.keyboard.press("s")
    wait(lambda: page.locator("article").count() == 1)
    assert store.row(number_of(store, HOSTS[0]), "ann").state == "skip"

    assert press(page, "g", "f") == "Finish round 1?" and press(page, "h").startswith("Which of these")
    press(page, "g", "f")
    assert press(page, "y") == "Round 1 is finished" and store.queues()[0].is_finished
    assert press(page, "r").startswith("Which of these") and not store.queues()[0].is_finished

    press(page, "g", "i")
    page.keyboard.press("c")
    wait(lambda: page.wait_for_timeout(20) or chosen)
    page.keyboard.press("y")
    page.get_by_text("1 new decision imported").wait_for()
    with page.expect_download() as download:
        page.keyboard.press("x")
    assert "klein.example/" in Path(download.value.path()).read_text()

    page.keyboard.press("w")
    page.keyboard.type("cy")
    page.keyboard.press("Enter")
    page.get_by_text("you: cy").wait_for()
    assert press(page, "Enter") == HOSTS[2]  # what others flagged is asked as well
    press(page, "m")
    assert store.log(1)[0][0].who == "cy" and page.seen["errors"] == []


def test_all_is_decided_and_the_run_goes_on_by_a_key(serve: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path, HOSTS[:1])
    store.stamp(1)
    page = serve(store).open("/q/1/next")
    assert press(page, "m").startswith("Which of these")
    page.get_by_text("The run goes on in a few seconds").wait_for()
    assert press(page, "u") == HOSTS[0] and press(page, "m").startswith("Which of these")
    assert press(page, "y") == "Round 1 is finished"


def test_without_javascript(serve: Any, tmp_path: Path) -> None:
    site = serve(make_store(tmp_path))
    page = site.open(java_script_enabled=False)
    page.get_by_role("link", name="Next question").click()
    page.get_by_label("Note").fill("by mouse")
    page.get_by_role("button", name="Math m", exact=True).click()
    assert heading(page) == HOSTS[1] and site.store.final(1)[0]["reason"] == "by mouse"
    page.get_by_role("button", name="Undo").click()
    assert heading(page) == HOSTS[0] and site.store.final(1) == []
    page.get_by_role("link", name="Sample 2").click()
    assert page.frame_locator("iframe").locator("body").inner_text() == "plain text"
    page.goto(f"{site.url}/q/1?search=notes")
    assert page.locator("tr[data-row]").count() == 1
    page.get_by_role("link", name="Finish").click()
    page.get_by_role("button", name="Finish and let the loop go on").click()
    assert heading(page) == "Round 1 is finished"


def test_a_server_that_is_gone_does_not_look_like_a_decision(serve: Any, tmp_path: Path) -> None:
    site = serve(make_store(tmp_path))
    page = site.open("/q/1/next")
    page.context.set_offline(True)
    page.keyboard.press("m")
    page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
    page.context.set_offline(False)
    assert heading(page) == HOSTS[0] and press(page, "m") == HOSTS[1] and page.get_by_role("alert").count() == 0
    assert site.store.log(1)[1] == 1


def test_login_by_token(serve: Any, tmp_path: Path) -> None:
    site = serve(make_store(tmp_path), needs_login=True)
    page = site.open("/q/1/next")
    page.get_by_label("Your token").fill(site.store.invite("bo"))
    page.keyboard.press("Enter")
    wait(lambda: heading(page) == HOSTS[0])
    assert page.frame_locator("iframe").locator("math").count() == 2
    press(page, "m")
    assert site.store.final(1)[0]["who"] == "bo"
    page.get_by_role("button", name="Log out").click()
    page.goto(f"{site.url}/q/1")
    assert heading(page) == "Log in"


@pytest.mark.parametrize(("key", "state"), [("y", "math"), ("o", "disagreement"), ("l", "math")])
def test_two_people_on_one_prefix_get_a_conflict(serve: Any, tmp_path: Path, key: str, state: str) -> None:
    site = serve(make_store(tmp_path))
    address = f"/p/{number_of(site.store, HOSTS[0])}"
    ann, bo = site.open(address, "ann"), site.open(address, "bo")
    assert press(ann, "m") == HOSTS[1]
    assert press(bo, "n") == "Somebody else has decided on this meanwhile"
    assert "ann decided" in bo.locator("#main").inner_text() and site.store.log(1)[1] == 1
    press(bo, key)
    assert site.store.row(number_of(site.store, HOSTS[0]), "bo").state == state


def test_hostile_pages_run_nothing_and_ask_for_nothing(serve: Any, tmp_path: Path) -> None:
    text = "\n\n".join([SCRIPTS, *(f"\\({formula}\\)" for formula in [*FORMULAS, *KILLERS])])[:19_000]
    pages = [("javascript:window.hit=1", text), ("data:text/html,<script>alert(1)</script>", text)]
    site = serve(make_store(tmp_path, [HOSTS[0], *PREFIXES], pages))
    for prefix in PREFIXES:
        number = number_of(site.store, prefix)
        site.store.decide(number, SCRIPTS, "flag", SCRIPTS)
        site.store.suggest(1, prefix, SCRIPTS, "math", SCRIPTS)
    page = site.open()
    addresses = ["/q/1", "/q/1/log", "/q/1/unsettled", "/q/1/finish", "/text/1?queue=1"]
    for address in addresses + [f"/p/{number_of(site.store, prefix)}?sample=2" for prefix in [HOSTS[0], *PREFIXES]]:
        page.goto(site.url + address)
        assert page.evaluate("window.hit") is None
    frame = page.frames[1]
    assert "<script>window.hit=1;" in frame.locator("body").inner_text()
    assert frame.locator("script, img, svg, iframe, a, form").count() == 0 and frame.locator("math").count() > 3
    assert page.evaluate("document.querySelector('iframe').contentDocument") is None  # an origin of its own
    focused = "document.activeElement.tagName"  # the frame may be another process, which takes and gives the focus a little later
    page.locator("iframe").click()
    wait(lambda: page.evaluate(focused) == "IFRAME")
    page.mouse.move(5, 5)
    wait(lambda: page.evaluate(focused) != "IFRAME")
    press(page, "g", "l")  # keys work after a click into the frame, once the pointer has left it
    assert page.seen == {"dialogs": [], "foreign": [], "errors": []}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_nothing_is_cut_off_or_jumps(serve: Any, tmp_path: Path, width: int, scheme: str) -> None:
    site = serve(make_store(tmp_path, [f"{'very-long-' * 9}{host}" for host in HOSTS]))
    page = site.open(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for address in (
        "/q/1",
        f"/p/{site.store.rows(1, 'ann')[0][0].id}",
        "/q/1/log",
        "/q/1/unsettled",
        "/q/1/agreement",
        "/q/1/data",
        "/q/1/finish",
    ):
        page.goto(site.url + address)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, address
        light = page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) > 127")
        assert light == (scheme == "light")
    page.goto(f"{site.url}/q/1/next")
    formula = page.frame_locator("iframe").locator("math").first.bounding_box()
    assert formula and formula["width"] > 40 and formula["height"] > 10
    top = page.locator("#main").bounding_box()["y"]
    press(page, "m")
    assert abs(page.locator("#main").bounding_box()["y"] - top) <= 1
