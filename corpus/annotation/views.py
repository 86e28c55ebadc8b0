"""The views: what is asked of the store, and with which template it is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from mathpipe.corpus.annotation import formats, security
from mathpipe.corpus.annotation.records import UNSETTLED, parsed
from mathpipe.corpus.annotation.store import Conflict, Decision, Finished, Row
from mathpipe.corpus.annotation.visit import NAME, Visit, whole
from mathpipe.pipeline.artifact import json_lines

LIMIT, LOG_LIMIT, NUM_OPEN_SHOWN = 50, 100, 12
"""Questions and log lines on one page; questions that the page before finishing names."""
MAX_NOTE = 2_000
View = Callable[[Visit], Response]


def to(address: str) -> Response:
    """Go on with another page."""
    return RedirectResponse(address, 303)


# who


def home(visit: Visit) -> Response:
    """The queue that waits, else the newest, else wait for one."""
    found = visit.store.waiting() or next(iter(visit.queues), None)
    return to(f"/q/{found.id}") if found else visit.page("waiting.html")


def to_login(request: Request) -> Response:
    """Ask who it is."""
    return to(f"/login?next={quote(request.url.path)}" if request.method == "GET" else "/login")


def login(visit: Visit) -> Response:
    """The form for the token."""
    return visit.page("login.html", next=local(visit.request.query_params.get("next", "/")), is_wrong=False)


def log_in(visit: Visit) -> Response:
    """Keep the token in a cookie, if it is somebody's."""
    token, target = str(visit.form.get("token", "")).strip(), local(str(visit.form.get("next", "/")))
    if not visit.site.needs_login() or visit.store.annotator_of(token) is None:
        return visit.page("login.html", 403, next=target, is_wrong=True)
    response = to(target)
    security.set_cookie(response, visit.request, security.TOKEN, token)
    return response


def local(address: str) -> str:
    """A path on this server, whatever is asked for.

    >>> local("/q/1"), local("//evil.org"), local("/\\\\evil.org"), local("https://evil.org")
    ('/q/1', '/', '/', '/')
    """
    return address if re.fullmatch(r"/(?:[A-Za-z0-9][A-Za-z0-9/_.-]*)?", address) else "/"


def log_out(visit: Visit) -> Response:
    """Forget the token."""
    response = to("/login")
    response.delete_cookie(security.TOKEN, path="/", httponly=True, samesite="strict")
    return response


def rename(visit: Visit) -> Response:
    """Another name, where nobody has to log in."""
    name = str(visit.form.get("who", "")).strip()
    if visit.site.needs_login():
        raise HTTPException(403, "on this server the token says who you are")
    if not NAME.fullmatch(name):
        raise HTTPException(400, "a name has 1 to 40 letters, digits, spaces or . @ + ' -")
    response = to("/")
    security.set_cookie(response, visit.request, security.WHO, quote(name))
    return response


# questions


def queue(visit: Visit) -> Response:
    """The domains by expected gain; with a state or a search, prefixes of any level."""
    asked = visit.queue()
    state, order = visit.parameter("state", formats.FILTERS_OF_STATE), visit.parameter("order", formats.ORDERS, "gain")
    search, offset = visit.request.query_params.get("search", "")[:200], visit.number("offset")
    rows, total = visit.store.rows(asked.id, visit.who, state=state, search=search, order=order, offset=offset, limit=LIMIT)
    pages = visit.pages(offset, LIMIT, total)
    return visit.page("queue.html", queue=asked, rows=rows, state=state, order=order, search=search, pages=pages)


def bar(visit: Visit) -> Response:
    """The header alone; it refreshes itself."""
    return visit.page("bar.html", queue=visit.queue())


def next_question(visit: Visit) -> Response:
    """The next question for this annotator."""
    try:
        return to_next(visit, visit.queue().id, visit.number("after") or None)
    except LookupError:
        raise HTTPException(404, "there is no such question") from None


def to_next(visit: Visit, queue: int, after: int | None) -> Response:
    """Go on with the next question, or with the list where none is left."""
    row = visit.store.next_open(queue, visit.who, after)
    notice = "" if row else "none-left" if visit.store.progress(queue).left else "done"
    return to(f"/p/{row.id}" if row else f"/q/{queue}?notice={notice}")


def question(visit: Visit) -> Response:
    """A prefix, everything about it, and what can be decided."""
    return show_question(visit, visit.row())


def show_question(visit: Visit, row: Row) -> Response:
    """A prefix with its ancestors, children, samples, suggestions and decisions."""
    asked, offset = visit.queue_of(row.queue), visit.number("offset")
    children, total = visit.store.rows(row.queue, visit.who, parent=row.id, offset=offset, limit=LIMIT) if row.num_children else ([], 0)
    number = min(max(1, visit.number("sample", 1)), max(1, len(row.samples)))
    url = url_of(visit, asked.pages, row.samples[number - 1].id) if row.samples else ""
    return visit.page(
        "question.html", queue=asked, row=row, path=visit.store.path(row.id, visit.who) if row.parent_id else [], children=children,
        pages=visit.pages(offset, LIMIT, total), samples=row.samples, shown=number, url=url, suggestions=visit.store.suggestions(row.id),
        decisions=visit.store.decisions_on(row.id, visit.who)[::-1], is_settling=row.state in UNSETTLED, link=visit.link,
    )  # fmt: skip


def url_of(visit: Visit, pages: Path, page_id: int) -> str:
    """Address of a sample page; empty where it is gone."""
    try:
        return visit.site.texts.page(pages, page_id).url
    except (KeyError, OSError):
        return ""


def decide(visit: Visit) -> Response:
    """Record a verdict and go on with the next question."""
    form = visit.form
    question_id, version = int(visit.request.path_params["question"]), whole("version", str(form.get("version", "")))
    note, kind = str(form.get("note", "")).strip()[:MAX_NOTE], str(form.get("kind", "decide"))
    try:
        row = visit.store.decide(question_id, visit.who, str(form.get("verdict", "")), note, version, kind)
    except LookupError:
        raise HTTPException(404, "there is no such question") from None
    except Finished:
        raise
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    progress = visit.store.progress(row.queue)
    if form.get("then") == "unsettled" and progress.left + progress.num_unsettled:
        return to(f"/q/{row.queue}/unsettled")
    return to_next(visit, row.queue, row.id)


def conflict(visit: Visit, found: Conflict) -> Response:
    """Somebody was faster, in another window oneself perhaps: what was said, and the choice to keep it or to record one's own."""
    row = visit.row()
    verdict, note = str(visit.form.get("verdict", "")), str(visit.form.get("note", "")).strip()[:MAX_NOTE]
    kind = "settle" if visit.form.get("kind") == "settle" and row.state in UNSETTLED else "decide"
    return visit.page(
        "conflict.html", 409, queue=visit.queue_of(row.queue), row=row, decisions=found.decisions, version=found.version,
        verdict=verdict, kind=kind, note=note, is_own=all(each.who == visit.who for each in found.decisions),
    )  # fmt: skip


def undo(visit: Visit) -> Response:
    """Take back this annotator's latest decision and show its prefix."""
    asked = visit.queue()
    row = visit.store.undo(asked.id, visit.who)
    return to(f"/p/{row.id}?notice=undone" if row else f"/q/{asked.id}?notice=nothing")


def text(visit: Visit) -> Response:
    """The frame: a page's text as the corpus would get it."""
    asked = visit.queue_of(visit.number("queue"))
    status, html, left_out = 200, "", ""
    try:
        html, left_out = visit.site.texts.html(asked.pages, int(visit.request.path_params["page"]))
    except KeyError:
        status, left_out = 404, "this page is not among the pages of the queue"
    except OSError:
        status, left_out = 404, f"the pages of this queue are no longer at {asked.pages}"
    body = visit.site.templates.get_template("text.html").render(html=html, left_out=left_out, is_found=status == 200)
    return HTMLResponse(body, status, {"Content-Security-Policy": security.FRAME_POLICY})


# the queue as a whole


def log(visit: Visit) -> Response:
    """Who decided what."""
    asked, offset = visit.queue(), visit.number("offset")
    by, prefix = visit.request.query_params.get("by", "")[:200], visit.request.query_params.get("prefix", "")[:2_000]
    decisions, total = visit.store.log(asked.id, who=by, prefix=prefix, viewer=visit.who, offset=offset, limit=LOG_LIMIT)
    people = visit.store.people(asked.id)
    return visit.page(
        "log.html", queue=asked, decisions=decisions, people=people, by=by, prefix=prefix, pages=visit.pages(offset, LOG_LIMIT, total)
    )


def unsettled(visit: Visit) -> Response:
    """Flags and disagreements."""
    asked, offset = visit.queue(), visit.number("offset")
    rows, total = visit.store.disagreements(asked.id, visit.who, offset=offset, limit=LIMIT)
    said: list[tuple[Row, list[Decision]]] = [
        (row, [each for each in visit.store.decisions_on(row.id, visit.who) if each.undone_at is None]) for row in rows
    ]
    return visit.page("unsettled.html", queue=asked, said=said, pages=visit.pages(offset, LIMIT, total))


def agreement(visit: Visit) -> Response:
    """Cohen's kappa by pair."""
    asked = visit.queue()
    return visit.page("agreement.html", queue=asked, agreement=visit.store.agreement(asked.id), people=visit.store.people(asked.id))


def data(visit: Visit) -> Response:
    """Import and export."""
    return visit.page("data.html", queue=visit.queue(), num_imported=None)


def export(visit: Visit) -> Response:
    """The decisions that count, in the format that `annotate.source = "file"` reads."""
    asked = visit.queue()
    body = json_lines(visit.store.final(asked.id))
    headers = {"Content-Disposition": f'attachment; filename="decisions-{asked.id}.jsonl"'}
    return Response(body.encode("utf-8", "replace"), media_type="application/jsonl", headers=headers)


def import_file(visit: Visit) -> Response:
    """Record the decisions of a JSONL file, all or none."""
    asked, upload = visit.queue(), visit.form.get("file")
    if not isinstance(upload, UploadFile) or not upload.filename:
        raise HTTPException(400, "choose a file")
    try:
        num = visit.store.import_decisions(asked.id, (value for _, value in parsed(upload.file)), visit.who)
    except ValueError as error:
        raise HTTPException(400, f"nothing was imported: {error}") from None
    return visit.page("data.html", queue=asked, num_imported=num)


def finish(visit: Visit) -> Response:
    """Ask before the queue ends, and say what stays open."""
    asked = visit.queue()
    rows, total = visit.store.rows(asked.id, visit.who, state="left", limit=NUM_OPEN_SHOWN)
    return visit.page("finish.html", queue=asked, rows=rows, total=total)


def finish_now(visit: Visit) -> Response:
    """End the queue: the loop goes on with what is decided."""
    asked = visit.queue()
    visit.store.finish(asked.id, visit.who, "on the page")
    return to(f"/q/{asked.id}/finish")


def reopen(visit: Visit) -> Response:
    """Take decisions again."""
    asked = visit.queue()
    visit.store.reopen(asked.id)
    return to(f"/q/{asked.id}?notice=reopened")


OPEN: tuple[View, ...] = (login, log_in)
"""Views for people who have not logged in."""
