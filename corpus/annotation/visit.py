"""One request to the page: who sends it, what it asks for, how it is answered."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any
from urllib.parse import unquote, urlencode

from jinja2 import Environment
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from mathpipe.corpus.annotation import security
from mathpipe.corpus.annotation.render import Texts
from mathpipe.corpus.annotation.store import Decision, Queue, Row, Store

NAME = re.compile(r"[^\W_](?:[\w .@+'-]{0,38}[\w.])?")
NOTICES = {
    "undone": "Undone. This is the prefix as it was before.",
    "nothing": "You have no decision left to undo in this queue.",
    "none-left": "No question is open for you: what is left was given to others a moment ago, or waits for others or a settlement.",
    "done": "Nothing is left to decide.",
    "reopened": "The queue takes decisions again.",
}
MAX_UNDONE = 200
"""Decisions among which the one is looked for that was undone last."""


@dataclass(frozen=True)
class Site:
    """What all requests share."""

    store: Store
    texts: Texts
    templates: Environment
    needs_login: Callable[[], bool]
    who: str

    def annotator(self, request: Request) -> str:
        """Who sends a request, or ""."""
        if self.needs_login():
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

    @cached_property
    def queues(self) -> list[Queue]:
        """All queues, read once for a request: one that changes them ends in a redirect."""
        return self.store.queues()

    def page(self, template: str, status: int = 200, queue: Queue | None = None, **values: Any) -> Response:
        """A template as a page, or as the part of it that htmx exchanges."""
        is_part = self.request.headers.get("hx-request") == "true" and "hx-history-restore-request" not in self.request.headers
        values |= {
            "layout": "part.html" if is_part else "base.html", "queue": queue, "who": self.who, "csrf": self.csrf, "view": template,
            "status": status, "needs_login": bool(self.who) and self.site.needs_login(),
            "notice": self.request.query_params.get("notice", ""), "NOTICES": NOTICES,
        }  # fmt: skip
        if queue:
            queues, progress = self.queues, self.store.progress(queue.id)
            by_budget = progress.budget > 0  # then `left` may be fewer than the hosts
            values |= {
                "progress": progress, "queues": queues, "labels": labels(queues), "last": self.latest(queue),
                "elsewhere": elsewhere(queue, queues),
                "hosts_left": self.store.rows(queue.id, self.who, state="left", limit=0)[1] if by_budget else progress.left,
            }  # fmt: skip
        text = self.site.templates.get_template(template).render(values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)

    def queue(self) -> Queue:
        """The queue that the address names."""
        return self.queue_of(int(self.request.path_params["queue"]))

    def queue_of(self, number: int) -> Queue:
        """A queue by its number."""
        for queue in self.queues:
            if queue.id == number:
                return queue
        raise HTTPException(404, "there is no such queue")

    def latest(self, queue: Queue) -> Decision | None:
        """The decision that this annotator made, or took back, last."""
        found, _ = self.store.log(queue.id, who=self.who, viewer=self.who, limit=1)
        if found and found[0].undone_at is not None:  # whatever is newer than the one that was undone last is undone as well
            found, _ = self.store.log(queue.id, who=self.who, viewer=self.who, limit=MAX_UNDONE)
            return max(takewhile(lambda each: each.undone_at is not None, found), key=lambda each: each.undone_at or 0)
        return found[0] if found else None

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


def whole(name: str, value: str) -> int:
    """A parameter as a whole number."""
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise HTTPException(400, f"{name}: expected a whole number, found {value[:40]!r}")
    return int(value)


def elsewhere(queue: Queue, queues: list[Queue]) -> Queue | None:
    """The queue to go to instead: one for which a run waits, if none waits for this; where this is finished, any that is not."""
    unfinished = [each for each in queues if not each.is_finished]
    waited = [each for each in unfinished if each.is_waited_for]
    if any(each.id == queue.id for each in waited):
        return None
    return next(iter(waited or (unfinished if queue.is_finished else [])), None)


def labels(queues: list[Queue]) -> dict[int, str]:
    """What each queue is called: with its profile, where there are several."""
    profiles = {each.id: each.name.rpartition("/")[0] for each in queues}
    several = len(set(profiles.values())) > 1
    return {each.id: f"{profiles[each.id]}, round {each.round}" if several else f"round {each.round}" for each in queues}
