"""Who is there: servers of the page, stages that wait for a queue, and the people who were invited."""

from __future__ import annotations

import hashlib
import secrets
import time

from mathpipe.corpus.annotation.schema import Database

PRESENT_S = 15
"""A server or a stage that was not seen for so long is gone."""
STAMP_S = 3
"""A stage that was seen so lately is not written down again."""


class Presence:
    """The part of a store that knows no questions."""

    def __init__(self, address: str) -> None:
        self.database = Database(address)

    def seen(self, url: str) -> None:
        """A server says that it is there."""
        upsert = "INSERT INTO servers VALUES (:url, :at) ON CONFLICT (url) DO UPDATE SET seen_at = excluded.seen_at"
        with self.database.writing() as c:
            c.run(upsert, {"url": url, "at": time.time()})

    def server(self) -> str | None:
        """URL of a server that is there."""
        with self.database.reading() as c:
            select = "SELECT url FROM servers WHERE seen_at > :after ORDER BY seen_at DESC LIMIT 1"
            return c.scalar(select, {"after": time.time() - PRESENT_S})

    def stamp(self, queue: int) -> None:
        """A stage says that it waits for a queue."""
        update, now = "UPDATE queues SET waiting_at = :now WHERE id = :queue AND waiting_at < :before", time.time()
        with self.database.writing() as c:
            c.run(update, {"queue": queue, "now": now, "before": now - STAMP_S})

    def invite(self, name: str) -> str:
        """A new token for an annotator; an older one of theirs ends. Only its SHA-256 is kept.

        Raises:
            ValueError: no name.
        """
        if not name.strip():
            raise ValueError("an annotator needs a name")
        token = secrets.token_urlsafe(24)
        upsert = """INSERT INTO annotators VALUES (:name, :digest, :at)
            ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256, created_at = excluded.created_at"""
        with self.database.writing() as c:
            c.run(upsert, {"name": name.strip(), "digest": _digest(token), "at": time.time()})
        return token

    def annotator_of(self, token: str) -> str | None:
        """Who was given a token."""
        with self.database.reading() as c:
            return c.scalar("SELECT name FROM annotators WHERE token_sha256 = :digest", {"digest": _digest(token)})

    def annotators(self) -> list[str]:
        """Who was invited."""
        with self.database.reading() as c:
            return c.column("SELECT name FROM annotators ORDER BY name")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
