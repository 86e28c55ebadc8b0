"""`mathpipe annotate`: serves the page on which people decide, and does from the command line what the page does by a button.

The server belongs to no run: it may be started before one, shows the queue that waits, and then the next round's. It tells the
database every few seconds that it is there; a stage that asks people looks for that.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from mathpipe.corpus import annotate
from mathpipe.corpus.annotation import app, suggest
from mathpipe.corpus.annotation.schema import DatabaseError
from mathpipe.corpus.annotation.store import Queue, Store
from mathpipe.corpus.round_config import AnnotateConfig
from mathpipe.pipeline import log

SEEN_S = 5.0
"""How often the server says that it is there."""
EVERYWHERE = ("0.0.0.0", "::")


def main(config: AnnotateConfig, root: Path, options: argparse.Namespace) -> None:
    """One call of `mathpipe annotate` for the profile with folder `root`.

    Raises:
        ValueError: the port is taken, nobody was invited, no queue is there, or a file is not one of decisions.
    """
    root.mkdir(parents=True, exist_ok=True)
    store = Store(config.database(root))
    who = options.who or os.environ.get("USER") or "annotator"
    if options.invite:
        token, url = store.invite(options.invite), options.url or address(options.host, options.port)
        print(f"{options.invite.strip()}: log in on {url} with the token {token} (it is shown only now; an older one ends)")
    elif options.export:
        decisions = store.final(newest(store).id)
        annotate.write_lines(options.export, decisions)
        print(f"{options.export}: {len(decisions)} decisions")
    elif options.import_:
        queue = waiting(store)
        number = store.import_decisions(queue.id, annotate.parse_decisions(options.import_), who)
        print(f"{queue.stage}: {number} decisions imported from {options.import_}; {open_hosts(store, queue)}")
    elif options.finish:
        queue = waiting(store)
        store.finish(queue.id, who, "mathpipe annotate --finish")
        print(f"{queue.stage}: finished with {len(store.final(queue.id))} decisions; {open_hosts(store, queue)}; the run goes on")
    else:
        serve(store, config, options.host, options.port, who, options.url)


def newest(store: Store) -> Queue:
    """The queue that was made last.

    Raises:
        ValueError: there is none.
    """
    found = store.queues()
    if not found:
        raise ValueError(f"{store.database.name}: no queue is there yet; start `mathpipe run` with annotate.source = \"human\" first")
    return found[0]


def waiting(store: Store) -> Queue:
    """The newest queue that is not finished.

    Raises:
        ValueError: there is none.
    """
    last = newest(store)
    queue = suggest.waiting(store)
    if queue is None:
        raise ValueError(f"{store.database.name}: no queue waits; that of {last.stage} is finished")
    return queue


def open_hosts(store: Store, queue: Queue) -> str:
    """How many hosts of a queue are left, in words."""
    progress = store.progress(queue.id)
    return f"{progress.left} of {progress.total} hosts open"


def serve(store: Store, config: AnnotateConfig, host: str, port: int, who: str, public_url: str = "") -> None:
    """Serve the page until Ctrl-C. Once somebody was invited everybody logs in.

    Args:
        public_url: where others find the page when a proxy (TLS) stands before it.

    Raises:
        ValueError: the port is taken, an address is none, or others can reach the page and nobody was invited.
    """
    if public_url and not (public_url.startswith(("http://", "https://")) and urlsplit(public_url).hostname):
        raise ValueError(f"--url must be an address such as https://annotate.example.org/, found {public_url!r}")
    needs_login = bool(store.annotators())
    if not needs_login and (public_url or not is_loopback(host)):
        raise ValueError(f"others can reach {public_url or host}: invite each annotator first, with `mathpipe annotate --invite NAME`")
    with listen(host, port) as listener:
        url, stop = public_url or address(host, listener.getsockname()[1]), threading.Event()
        store.seen(url)
        print(f"annotation page: {url}  (Ctrl-C ends it; the run may be started before or after)", flush=True)
        if needs_login and not url.startswith("https://"):
            print("log in with your token; on a network, put a proxy with TLS (--url) or an SSH tunnel before this page", flush=True)
        threads = [threading.Thread(target=watch, args=(store, url, stop), daemon=True)]
        if config.runtime.suggest_url:
            endpoint = suggest.Endpoint(config.runtime.suggest_url, config.runtime.suggest_model, os.environ.get("OPENAI_API_KEY", ""))
            threads.append(threading.Thread(target=suggest.keep_suggesting, args=(store, endpoint, stop), daemon=True))
        for thread in threads:
            thread.start()
        page = app.make_app(store, needs_login=needs_login, who=who, hosts={*names(host), str(urlsplit(url).hostname)})
        settings = uvicorn.Config(page, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2)
        try:
            uvicorn.Server(settings).run(sockets=[listener])
        finally:
            stop.set()


def watch(store: Store, url: str, stop: threading.Event) -> None:
    """Say that the server is there, and print which queue waits whenever that changes."""
    told = None
    while not stop.is_set():
        try:
            store.seen(url)
            queue = suggest.waiting(store)
            words = f"{queue.stage} waits: {open_hosts(store, queue)}" if queue else "no queue waits now; the next one appears by itself"
            if told != (number := queue.id if queue else 0):
                told = number
                print(words, flush=True)
        except DatabaseError as error:
            log.logger().warning("%s", error)
        stop.wait(SEEN_S)


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
    """What the server may be called: a page of another site that made its name point here is refused."""
    found = {host, "localhost", "127.0.0.1", "::1"}
    if is_loopback(host):
        return found
    own = {socket.gethostname(), socket.getfqdn()}
    with contextlib.suppress(socket.gaierror):  # a machine may not know its own name
        own |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    return found | own


def page_of(config: AnnotateConfig, root: Path) -> str | None:
    """Link to the page of a profile where it is served now."""
    place = config.database(root)
    return Store(place).server() if "://" in place or Path(place).exists() else None
