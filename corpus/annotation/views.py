"""The views: what is asked of the store, and with which template it is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

from jinja2 import Environment
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from mathpipe.corpus.annotation import formats, security
from mathpipe.corpus.annotation.render import Texts
from mathpipe.corpus.annotation.store import Conflict, Decision, Finished, Queue, Row, Store

LIMIT, LOG_LIMIT, NUM_OPEN_SHOWN = 50, 100, 12
"""Questions and log lines on one page; questions that the page before finishing names."""
MAX_NOTE = 2_000
NAME = re.compile(r"[^\W_](?:[\w .@+'-]{0,38}[\w.])?")
NOTICES = {
    "undone": "Undone. This is the prefix as it was before.",
    "nothing": "You have no decision left to undo in this queue.",
    "none-left": "No question is open for you: what is left was given to others a moment ago, waits for a second opinion, or is done.",
    "reopened": "The queue takes decisions again.",
}


@dataclass(frozen=True)
class Site:
    """What all requests share."""

    store: Store
    texts: Texts
    templates: Environment
    needs_login: bool
    who: str

    def annotator(self, request: Request) -> str:
        """Who sends a request, or ""."""
        if self.needs_login:
            token = request.cookies.get(security.TOKEN, "")
            return (self.store.annotator_of(token) or "") if token else ""
        name = unquote(request.cookies.get(security.WHO, ""))
        return name if NAME.fullmatch(name) else self.who


@dataclass(frozen=True)
class Visit:
    """One request: who, with which form."""

    site: Site
    request: Request
    who: str
    form: FormData
    csrf: str

    @property
    def store(self) -> Store:
        return self.site.store

    def page(self, template: str, status: int = 200, queue: Queue | None = None, **values: Any) -> Response:
        """A template as a page, or as the part of it that htmx exchanges."""
        is_part = self.request.headers.get("hx-request") == "true" and "hx-history-restore-request" not in self.request.headers
        values |= {
            "layout": "part.html" if is_part else "base.html", "queue": queue, "who": self.who, "csrf": self.csrf, "view": template,
            "status": status, "needs_login": self.site.needs_login, "notice": NOTICES.get(self.request.query_params.get("notice", ""), ""),
        }  # fmt: skip
        if queue:
            queues = self.store.queues()
            mine, _ = self.store.log(queue.id, who=self.who, viewer=self.who, limit=1)
            values |= {
                "progress": self.store.progress(queue.id), "queues": queues, "last": mine[0] if mine else None,
                "newer": queues[0] if queue.is_finished and not queues[0].is_finished else None,
            }  # fmt: skip
        text = self.site.templates.get_template(template).render(values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)

    def queue(self) -> Queue:
        """The queue that the address names."""
        return find_queue(self.store, int(self.request.path_params["queue"]))

    def row(self) -> Row:
        """The question that the address names."""
        try:
            return self.store.row(int(self.request.path_params["question"]), self.who)
        except LookupError:
            raise HTTPException(404, "there is no such question") from None

    def parameter(self, name: str, allowed: Any, default: str = "") -> str:
        """A parameter with one of the allowed values."""
        value = self.request.query_params.get(name, default)
        if value not in allowed:
            raise HTTPException(400, f"{name}: expected one of {', '.join(allowed)}; found {value[:40]!r}")
        return value

    def number(self, name: str, default: int = 0) -> int:
        """A parameter that counts."""
        return whole(name, self.request.query_params.get(name, str(default)))

    def link(self, **changes: Any) -> str:
        """This address with other parameters."""
        values = {**self.request.query_params, **changes}
        return "?" + urlencode({name: value for name, value in values.items() if value not in ("", 0) and name != "notice"})

    def pages(self, offset: int, limit: int, total: int) -> dict[str, Any]:
        """Links to the parts of a list before and after."""
        return {
            "first": offset + 1 if total else 0, "last": min(offset + limit, total), "total": total,
            "before": self.link(offset=max(0, offset - limit)) if offset else "",
            "after": self.link(offset=offset + limit) if offset + limit < total else "",
        }  # fmt: skip


View = Callable[[Visit], Response]


def whole(name: str, value: str) -> int:
    """A parameter as a whole number."""
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise HTTPException(400, f"{name}: expected a whole number, found {value[:40]!r}")
    return int(value)


def find_queue(store: Store, number: int) -> Queue:
    """A queue by its number."""
    for queue in store.queues():
        if queue.id == number:
            return queue
    raise HTTPException(404, "there is no such queue")


def to(address: str) -> Response:
    """Go on with another page."""
    return RedirectResponse(address, 303)


# who


def home(visit: Visit) -> Response:
    """The newest queue that takes decisions, else the newest, else wait for one."""
    queues = visit.store.queues()
    if not queues:
        return visit.page("waiting.html")
    return to(f"/q/{next((queue for queue in queues if not queue.is_finished), queues[0]).id}")


def to_login(visit: Visit) -> Response:
    """Ask who it is."""
    return to(f"/login?next={quote(visit.request.url.path)}" if visit.request.method == "GET" else "/login")


def login(visit: Visit) -> Response:
    """The form for the token."""
    return visit.page("login.html", next=local(visit.request.query_params.get("next", "/")), is_wrong=False)


def log_in(visit: Visit) -> Response:
    """Keep the token in a cookie, if it is somebody's."""
    token, target = str(visit.form.get("token", "")).strip(), local(str(visit.form.get("next", "/")))
    if not visit.site.needs_login or visit.store.annotator_of(token) is None:
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
    if visit.site.needs_login:
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
    return to(f"/p/{row.id}" if row else f"/q/{queue}?notice=none-left")


def question(visit: Visit) -> Response:
    """A prefix, everything about it, and what can be decided."""
    return show_question(visit, visit.row())


def show_question(visit: Visit, row: Row) -> Response:
    """A prefix with its ancestors, children, samples, suggestions and decisions."""
    asked, offset = find_queue(visit.store, row.queue), visit.number("offset")
    children, total = visit.store.rows(row.queue, visit.who, parent=row.id, offset=offset, limit=LIMIT) if row.num_children else ([], 0)
    number = min(max(1, visit.number("sample", 1)), max(1, len(row.samples)))
    url = url_of(visit, asked.pages, row.samples[number - 1].id) if row.samples else ""
    return visit.page(
        "question.html", queue=asked, row=row, path=visit.store.path(row.id, visit.who) if row.parent_id else [], children=children,
        pages=visit.pages(offset, LIMIT, total), samples=row.samples, shown=number, url=url, suggestions=visit.store.suggestions(row.id),
        decisions=visit.store.decisions_on(row.id, visit.who)[::-1], is_settling=row.state in ("flag", "disagreement"), link=visit.link,
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
    if form.get("then") == "unsettled":
        return to(f"/q/{row.queue}/unsettled")
    return to_next(visit, row.queue, row.id)


def conflict(visit: Visit, found: Conflict) -> Response:
    """Somebody else was faster: what they said, and the choice to keep it or to record one's own."""
    row = visit.row()
    verdict, kind = str(visit.form.get("verdict", "")), str(visit.form.get("kind", "decide"))
    note = str(visit.form.get("note", "")).strip()[:MAX_NOTE]
    others = [decision for decision in found.decisions if decision.who != visit.who]
    return visit.page(
        "conflict.html", 409, queue=find_queue(visit.store, row.queue), row=row, others=others, version=found.version, verdict=verdict,
        kind=kind, note=note,
    )  # fmt: skip


def undo(visit: Visit) -> Response:
    """Take back this annotator's latest decision and show its prefix."""
    asked = visit.queue()
    row = visit.store.undo(asked.id, visit.who)
    return to(f"/p/{row.id}?notice=undone" if row else f"/q/{asked.id}?notice=nothing")


def text(visit: Visit) -> Response:
    """The frame: a page's text as the corpus would get it."""
    asked = find_queue(visit.store, visit.number("queue"))
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
    body = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in visit.store.final(asked.id))
    headers = {"Content-Disposition": f'attachment; filename="decisions-{asked.id}.jsonl"'}
    return Response(body.encode("utf-8", "replace"), media_type="application/jsonl", headers=headers)


def import_file(visit: Visit) -> Response:
    """Record the decisions of a JSONL file, all or none."""
    asked, upload = visit.queue(), visit.form.get("file")
    if not isinstance(upload, UploadFile) or not upload.filename:
        raise HTTPException(400, "choose a file")
    try:
        num = visit.store.import_decisions(asked.id, lines(upload.file.read()), visit.who)
    except ValueError as error:
        raise HTTPException(400, f"nothing was imported: {error}") from None
    return visit.page("data.html", queue=asked, num_imported=num)


def lines(body: bytes) -> Iterator[Any]:
    """JSON by line.

    Raises:
        ValueError: a line is not JSON in UTF-8.
    """
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: not JSON: {error}") from None


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
