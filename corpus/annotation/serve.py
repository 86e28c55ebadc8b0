"""`mathpipe annotate`: serves the page on which people decide, and does from the command line what the page does by a button.

The server belongs to no run: it may be started before one, shows the queue that waits, and then the next round's. It tells the
database every few seconds that it is there; a stage that asks people looks for that.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvicorn

from mathpipe.corpus import annotate
from mathpipe.corpus.annotation import app, suggest
from mathpipe.corpus.annotation.schema import DatabaseError
from mathpipe.corpus.annotation.store import Queue, Store
from mathpipe.corpus.round_config import AnnotateConfig
from mathpipe.pipeline import artifact, log

SEEN_S = 5.0
"""How often the server says that it is there."""
EVERYWHERE = ("0.0.0.0", "::")
IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def main(config: AnnotateConfig, root: Path, options: argparse.Namespace) -> None:
    """One call of `mathpipe annotate` for the profile with folder `root`.

    Raises:
        ValueError: the port is taken, nobody was invited, no queue is there, or a file is not one of decisions.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        _obey(config, root, options)
    except DatabaseError as error:
        raise ValueError(f"{error}; run the same command again when the database is back") from error


def _obey(config: AnnotateConfig, root: Path, options: argparse.Namespace) -> None:
    store, profile = Store(config.database(root)), root.name
    who = options.who or os.environ.get("USER") or "annotator"
    if options.invite:
        token, url = store.invite(options.invite), options.url or address(options.host, options.port)
        print(f"{options.invite.strip()}: log in on {url} with the token {token} (it is shown only now; an older one ends)")
    elif options.export:
        decisions = store.final(newest(store, profile).id)
        export(options.export, decisions)
        print(f"{options.export}: {annotate.counted(len(decisions), 'decision')}")
    elif options.import_:
        queue = waiting(store, profile)
        number = store.import_decisions(queue.id, annotate.parse_decisions(options.import_, who), who)
        print(f"{queue.stage}: {annotate.counted(number, 'decision')} imported from {options.import_}; {open_hosts(store, queue)}")
    elif options.finish:
        queue = waiting(store, profile)
        store.finish(queue.id, who, "mathpipe annotate --finish")
        after = "the run goes on" if queue.is_waited_for else "run the same command again: no run waits now"
        found = annotate.counted(len(store.final(queue.id)), "decision")
        print(f"{queue.stage}: finished with {found}; {open_hosts(store, queue)}; {after}")
    else:
        serve(store, config, profile, options.host, options.port, who, options.url)


def export(file: Path, decisions: list[dict[str, Any]]) -> None:
    """Write decisions for people.

    Raises:
        ValueError: the file cannot be written.
    """
    try:
        artifact.write_lines(file, decisions)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; give a file that can be written") from None


def newest(store: Store, profile: str) -> Queue:
    """The queue of a profile that was made last.

    Raises:
        ValueError: there is none.
    """
    found = of_profile(store, profile)
    if not found:
        start = f"start `mathpipe run --profile {profile}` with annotate.source = \"human\" first"
        raise ValueError(f"{store.database.name}: no queue of {profile} is there yet; {start}")
    return found[0]


def of_profile(store: Store, profile: str) -> list[Queue]:
    """The queues of a profile, newest first."""
    return [queue for queue in store.queues() if queue.name.startswith(f"{profile}/")]


def waiting(store: Store, profile: str) -> Queue:
    """The queue of a profile that a stage waits for, or else the only one that is not finished.

    Raises:
        ValueError: there is none, or several of which none is waited for.
    """
    last, queue = newest(store, profile), store.waiting(profile)
    if queue is None:
        raise ValueError(f"{store.database.name}: no queue waits; that of {last.stage} is finished")
    unfinished = [one for one in of_profile(store, profile) if not one.is_finished]
    if len(unfinished) > 1 and not queue.is_waited_for:
        names = ", ".join(f"{one.name} (/q/{one.id})" for one in unfinished)
        raise ValueError(f"{store.database.name}: no run waits, and several queues are open: {names}; start the run, or use their pages")
    return queue


def open_hosts(store: Store, queue: Queue) -> str:
    """How many hosts of a queue are left, in words."""
    return f"{annotate.hosts_left(store, queue.id)} of {store.progress(queue.id).total} hosts open"


def serve(store: Store, config: AnnotateConfig, profile: str, host: str, port: int, who: str, public_url: str = "") -> None:
    """Serve the page until Ctrl-C. As soon as somebody was invited everybody logs in.

    Args:
        public_url: where others find the page when a proxy (TLS) stands before it.

    Raises:
        ValueError: the port is taken, an address is none, or others can reach the page and nobody was invited.
    """
    if public_url and not (public_url.startswith(("http://", "https://")) and urlsplit(public_url).hostname):
        raise ValueError(f"--url must be an address such as https://annotate.example.org/, found {public_url!r}")
    is_team = bool(store.annotators())
    if not is_team and (public_url or not is_loopback(host)):
        raise ValueError(f"others can reach {public_url or host}: invite each annotator first, with `mathpipe annotate --invite NAME`")
    with listen(host, port) as listener:
        url, stop = public_url or address(host, listener.getsockname()[1]), threading.Event()
        store.seen(url)
        print(f"annotation page: {url}  (Ctrl-C ends it; the run may be started before or after)", flush=True)
        if is_team and not url.startswith("https://"):
            print("log in with your token; on a network, put a proxy with TLS (--url) or an SSH tunnel before this page", flush=True)
        threads = [threading.Thread(target=watch, args=(store, profile, url, stop), daemon=True)]
        if config.runtime.suggest_url:
            endpoint = suggest.Endpoint(config.runtime.suggest_url, config.runtime.suggest_model, os.environ.get("OPENAI_API_KEY", ""))
            threads.append(threading.Thread(target=suggest.keep_suggesting, args=(store, endpoint, stop, profile), daemon=True))
        for thread in threads:
            thread.start()
        called = {*names(host), str(urlsplit(url).hostname)}
        page = app.make_app(store, needs_login=lambda: bool(store.annotators()), who=who, hosts=called, public_url=public_url)
        settings = uvicorn.Config(page, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2)
        try:
            uvicorn.Server(settings).run(sockets=[listener])
        finally:
            stop.set()


def watch(store: Store, profile: str, url: str, stop: threading.Event) -> None:
    """Say that the server is there, and print which queue waits whenever that changes."""
    told: tuple[int, bool] | None = None
    while not stop.is_set():
        try:
            store.seen(url)
            queue = store.waiting(profile)
            if told != (found := (queue.id, queue.is_waited_for) if queue else (0, False)):
                told = found
                print(state_of(store, queue), flush=True)
        except DatabaseError as error:
            log.logger().warning("%s", error)
        stop.wait(SEEN_S)


def state_of(store: Store, queue: Queue | None) -> str:
    """What waits for people, in words."""
    if queue is None:
        return "no queue waits now; the next one appears by itself"
    if queue.is_waited_for:
        return f"{queue.stage} waits: {open_hosts(store, queue)}"
    return f"{queue.stage}: {open_hosts(store, queue)}; no run waits for it now: decide, then run it again"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ValueError: the port is taken, or the address is none of this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot serve on port {port} of {host}: {error}; give another --port or --host") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str, port: int) -> str:
    """The link to print: with this machine's name where the server listens everywhere."""
    name = socket.gethostname() if host in EVERYWHERE else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


def names(host: str) -> Collection[str]:
    """What the server may be called: a page of another site that made its name point here is refused. An address is no name that
    others could make point anywhere."""
    found = {host, "localhost", "127.0.0.1", "::1"}
    if is_loopback(host):
        return found
    own = {one.address.partition("%")[0] for card in psutil.net_if_addrs().values() for one in card if one.family in IP_FAMILIES}
    return found | own | {socket.gethostname(), socket.getfqdn()}


def page_of(config: AnnotateConfig, root: Path) -> str | None:
    """Link to the page of a profile where it is served now."""
    place = config.database(root)
    try:
        return Store(place).server() if "://" in place or Path(place).exists() else None
    except DatabaseError as error:
        raise ValueError(str(error)) from error
