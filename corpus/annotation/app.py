"""The page on which people decide: routes, who is asking, what happens on errors.

Every action is a plain link or form; htmx (`hx-boost` on the body) only saves reloading, so nothing needs JavaScript.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mathpipe.corpus.annotation import formats, security, views
from mathpipe.corpus.annotation.render import Texts
from mathpipe.corpus.annotation.store import Conflict, Finished, Store
from mathpipe.corpus.annotation.views import View
from mathpipe.corpus.annotation.visit import Site, Visit

FOLDER = Path(__file__).parent
NUM_THREADS, NUM_WRITERS, NUM_TEXT_THREADS = 2, 2, 2
"""Views, decisions and texts that are worked on at the same time. More threads would only contend for the interpreter; who waits for
the database's only writer, or for formulas, keeps nobody else waiting."""
LOGIN_S = 5.0
"""How long the answer to whether one must log in is believed."""


class Number(IntegerConvertor):
    """A number in a path that fits a database's integer."""

    regex = "[0-9]{1,18}"


register_url_convertor("num", Number())


def make_app(store: Store, *, needs_login: bool | Callable[[], bool], who: str, hosts: Collection[str], public_url: str = "") -> Starlette:
    """The page over a store.

    Args:
        needs_login: whether annotators show their token, now or whenever asked; without, `who` decides, and may give another name.
        hosts: host names under which the server may be called.
        public_url: of a proxy before the server: its forms are accepted, cookies are Secure where it is https.
    """
    asks_login = remembered(needs_login if callable(needs_login) else lambda: needs_login)
    site = Site(store, Texts(), environment(), asks_login, who)
    readers, writers, texts = map(ThreadPoolExecutor, (NUM_THREADS, NUM_WRITERS, NUM_TEXT_THREADS))

    def get(path: str, view: View, threads: ThreadPoolExecutor = readers) -> Route:
        return Route(path, endpoint(site, view, threads), methods=["GET"])

    def post(path: str, view: View) -> Route:
        return Route(path, endpoint(site, view, writers), methods=["POST"])

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        site.texts.renderers.close()

    routes = [
        get("/", views.home),
        get("/login", views.login), post("/login", views.log_in), post("/logout", views.log_out), post("/who", views.rename),
        get("/q/{queue:num}", views.queue), get("/q/{queue:num}/bar", views.bar), get("/q/{queue:num}/next", views.next_question, writers),
        get("/q/{queue:num}/unsettled", views.unsettled), get("/q/{queue:num}/log", views.log), post("/q/{queue:num}/undo", views.undo),
        get("/q/{queue:num}/agreement", views.agreement), get("/q/{queue:num}/data", views.data),
        get("/q/{queue:num}/decisions.jsonl", views.export), post("/q/{queue:num}/import", views.import_file),
        get("/q/{queue:num}/finish", views.finish), post("/q/{queue:num}/finish", views.finish_now),
        post("/q/{queue:num}/reopen", views.reopen),
        get("/p/{question:num}", views.question), post("/p/{question:num}", views.decide),
        get("/text/{page:num}", views.text, texts), Mount("/static", StaticFiles(directory=FOLDER / "static")),
    ]  # fmt: skip

    async def error(request: Request, exception: Exception) -> Response:
        visit = Visit(site, request, "", FormData(), security.csrf_of(request))
        status = exception.status_code if isinstance(exception, HTTPException) else 500
        message = exception.detail if isinstance(exception, HTTPException) else "the server failed; its log says more"
        response = visit.page("error.html", status, message=message)
        security.add_headers(response.headers)  # a failure of ours (500) does not pass the middleware
        return response

    return Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={HTTPException: error, 500: error},
        middleware=[Middleware(security.Guard, hosts=hosts, public_url=public_url)],
    )  # fmt: skip


def remembered(check: Callable[[], object]) -> Callable[[], bool]:
    """A check that is made every few seconds at most."""
    answer, asked_at = False, float("-inf")

    def recent() -> bool:
        nonlocal answer, asked_at
        if time.monotonic() - asked_at >= LOGIN_S:
            answer, asked_at = bool(check()), time.monotonic()
        return answer

    return recent


def environment() -> Environment:
    """Jinja with everything escaped, and the filters of `formats`."""
    env = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        auto_reload=False,
    )  # fmt: skip
    env.filters |= formats.FILTERS
    env.globals |= formats.GLOBALS
    return env


def endpoint(site: Site, view: View, threads: ThreadPoolExecutor) -> Callable[[Request], Awaitable[Response]]:
    """A view as Starlette calls it: annotator known, form read and checked, run in a thread, its errors made pages."""

    def refusal(request: Request, who: str) -> Response | None:
        return None if who or view in views.OPEN else views.to_login(request)

    async def answer(request: Request) -> Response:
        form, loop = FormData(), asyncio.get_running_loop()
        if request.method == "POST":
            if refused := refusal(request, await loop.run_in_executor(threads, site.annotator, request)):
                return refused  # before the body is read
            form = await request.form(max_files=1, max_fields=20)
            security.check_csrf(request, request.headers.get("x-csrf-token") or str(form.get("csrf", "")))
        csrf = security.csrf_of(request)

        def run() -> Response:
            visit = Visit(site, request, site.annotator(request), form, csrf)
            return refusal(request, visit.who) or guarded(visit, view)

        response = await loop.run_in_executor(threads, run)
        await form.close()
        if request.cookies.get(security.CSRF) != csrf:
            security.set_cookie(response, request, security.CSRF, csrf)
        return response

    return answer


def guarded(visit: Visit, view: View) -> Response:
    """A view's response, or the page that belongs to its error."""
    try:
        return view(visit)
    except Conflict as conflict:
        return views.conflict(visit, conflict)
    except Finished as finished:
        raise HTTPException(409, f"{finished}; nothing was recorded") from None
