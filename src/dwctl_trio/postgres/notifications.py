"""Wake-ups between processes, by PostgreSQL's NOTIFY and LISTEN.

Rule 1: a notification is a hint. It may be lost, doubled or late, and nothing is wrong then: correctness is the poll's.
Rule 2: NOTIFY is never part of a transaction that does work, for its lock on commit defeats group commit. Topics are
collected, and one statement tells them all.
Rule 3: when the connection that listens is back, everybody is woken, because anything may have been missed.
Rule 4: nothing that PostgreSQL does ends the task; what fails is counted, logged once, and tried ever more slowly.

Behind a pooler that gives a client another session for each transaction, LISTEN succeeds and no notification ever
arrives: wake-ups then reach their own process at once, and the others find out by their poll.

It does not know what a topic means.

Source: PostgreSQL's documentation, "NOTIFY" (payload, order, queue) and "LISTEN"; invariant I23.
"""

import math
import random
import secrets
from contextlib import AbstractContextManager
from typing import NoReturn

import structlog
import trio

from dwctl_trio.domain.errors import StoreError
from dwctl_trio.domain.limits import Limits
from dwctl_trio.engine.wakeups import LocalWakeups, is_topic
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.ports import Wakeup
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.queries import load_query, refusals
from dwctl_trio.postgres.trio_asyncpg import Connection

CHANNEL = "dwctl_wakeups"
EVERYTHING = "*"
"""Told instead of topics when there are too many of them; no topic looks like it."""
MARK_BYTES = 8
"""Of the random mark by which a process knows its own notifications."""

_log = structlog.get_logger(__name__)


class PostgresWakeups:
    """Keeps ``ports.Wakeups`` for all processes on one database, while ``run`` runs.

    Args:
        pool: Where NOTIFY is sent, and from which LISTEN gets a connection of its own.
        limits: How often, how many, and how soon again.
        metrics: Where statements and failures are counted; None: nowhere.
    """

    def __init__(self, pool: Pool, limits: Limits, metrics: Metrics | None = None) -> None:
        self._pool = pool
        self._limits = limits
        self._metrics = metrics or Metrics()
        self._local = LocalWakeups()
        self._mark = secrets.token_hex(MARK_BYTES)
        self._untold: dict[str, None] = {}
        self._has_untold = trio.Event()

    def tell(self, topic: str) -> None:
        """See ``ports.Wakeups``: this process at once, the others with the next statement."""
        self._local.tell(topic)
        if EVERYTHING in self._untold:
            return
        self._untold[topic] = None
        if len(self._untold) > self._limits.notify_topics:
            self._untold = {EVERYTHING: None}
        self._has_untold.set()

    def listen(self, topic: str) -> AbstractContextManager[Wakeup]:
        """See ``ports.Wakeups``."""
        return self._local.listen(topic)

    async def run(self) -> NoReturn:
        """Carry wake-ups to and from the other processes, for ever; no error leaves it.

        Cancellation: its connection is closed at once, and what was not told yet is not told.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_sending, name="notify")
            await self._run_listening()

    # -- to the others

    async def _run_sending(self) -> NoReturn:
        outage = Outage("notify", self._limits)
        while True:
            await self._has_untold.wait()
            payload = " ".join((self._mark, *self._untold))
            self._untold, self._has_untold = {}, trio.Event()
            problem = await self._try_to_send(payload)
            if problem is None:
                outage.note_success()
                await trio.sleep(self._limits.notify_interval_s)
            else:
                self._metrics.notify_failures.inc()
                await trio.sleep(outage.note_failure(problem))

    async def _try_to_send(self, payload: str) -> str | None:
        """Send one statement; return what went wrong."""
        self._metrics.notify_statements.inc()
        query = load_query("wake_processes")
        try:
            with refusals(query.name):
                await self._pool.execute(query.text, *query.arguments({"channel": CHANNEL, "payload": payload}))
        except StoreError as error:
            return str(error)
        except Exception:  # noqa: BLE001 - supervision boundary: a hint, which the poll of the others makes up for
            _log.exception("notify_failed")
            return "unexpected"
        return None

    # -- from the others

    async def _run_listening(self) -> NoReturn:
        outage = Outage("listen", self._limits)
        while True:
            problem = await self._try_to_listen(outage)
            self._metrics.listen_failures.inc()
            await trio.sleep(outage.note_failure(problem))

    async def _try_to_listen(self, outage: "Outage") -> str:
        """Listen until that ends; return why."""
        try:
            async with self._pool.open_dedicated() as connection:
                with refusals("listen"):
                    await connection.add_listener(CHANNEL, self._hear)
                outage.note_success()
                self._local.tell_all()
                await self._watch(connection)
        except StoreError as error:
            return str(error)
        except Exception:  # noqa: BLE001 - supervision boundary: the listener, whose next connection may do better
            _log.exception("listen_failed")
            return "unexpected"
        return "the connection to the database was closed"

    async def _watch(self, connection: Connection) -> None:
        """Return when *connection* is closed; one that the network has swallowed does not answer a question."""
        query = load_query("ping")
        while not connection.is_closed():
            with trio.move_on_after(self._limits.listen_check_s):
                await connection.wait_closed()
                return
            with refusals(query.name):
                await connection.execute(query.text)

    def _hear(self, payload: str) -> None:
        mark, *topics = payload.split(" ")
        if mark == self._mark:
            return  # who listens here was woken by tell()
        for topic in topics:
            if topic == EVERYTHING:
                self._local.tell_all()
            elif is_topic(topic):  # the channel is open to whoever may connect
                self._local.tell(topic)


class Outage:
    """Something that fails for a while: logged when it begins and when it ends, and tried ever more slowly.

    Args:
        subject: What fails, the first word of the log's events.
        limits: The first and the longest pause.
    """

    def __init__(self, subject: str, limits: Limits) -> None:
        self._subject = subject
        self._first_s = limits.listen_retry_s
        self._cap_s = limits.listen_retry_cap_s
        self._pause_s = self._first_s
        self._failed_at = -math.inf
        self._lasts = False

    def note_failure(self, reason: str) -> float:
        """It has failed again; return the seconds to wait before the next try, never less than half of the first.

        The pause goes back to the first one not with a success but after some calm: a connection that is closed as
        soon as it is open must not be opened all the time.
        """
        now = trio.current_time()
        is_calm = now - self._failed_at > 2 * self._cap_s
        self._pause_s = self._first_s if is_calm else min(2 * self._pause_s, self._cap_s)
        self._failed_at = now
        if not self._lasts:
            self._lasts = True
            _log.warning(f"{self._subject}_failed", reason=reason)
        return self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing

    def note_success(self) -> None:
        """It works."""
        if self._lasts:
            self._lasts = False
            _log.info(f"{self._subject}_resumed")
