"""Wake-ups between processes: how soon, in how few statements, and through every kind of outage."""

import secrets
import statistics
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import structlog
import trio
import trio.testing
from tests.postgres.conftest import CancelAtStep, open_front
from tests.postgres.processes import QUICK, WAIT_S, open_process_pool, open_wakeups

from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.engine.wakeups import TOPIC_CHARACTERS_MAX
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.postgres import notifications
from dwctl_trio.postgres.embedded import EmbeddedPostgresOptions, open_embedded_postgres
from dwctl_trio.postgres.notifications import CHANNEL, MARK_BYTES, Outage, PostgresWakeups

LISTENERS = (
    "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    " and query ilike 'listen%'"
)
CLIENTS = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
PAYLOAD_BYTES = 8000
"""PostgreSQL refuses a payload that is not shorter."""
STEPS_MAX = 500


class Heard:
    """All payloads on the channel, as PostgreSQL gives them out."""

    def __init__(self) -> None:
        self.payloads: list[str] = []
        self._new = trio.Event()

    def note(self, payload: str) -> None:
        self.payloads.append(payload)
        self._new.set()

    async def wait_topics(self, *topics: str) -> None:
        """Return when each of *topics* was told."""
        with trio.fail_after(WAIT_S):
            while not set(topics) <= {topic for payload in self.payloads for topic in payload.split()[1:]}:
                await self._new.wait()
                self._new = trio.Event()


@pytest.fixture
async def heard(connection):
    heard = Heard()
    await connection.add_listener(CHANNEL, heard.note)
    return heard


def value(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(f"dwctl_{name}_total") or 0.0


async def wait_told(wakeup) -> None:
    with trio.fail_after(WAIT_S):
        await wakeup.wait()


async def wait_value(metrics: Metrics, name: str, at_least: int) -> None:
    with trio.fail_after(WAIT_S):
        while value(metrics, name) < at_least:  # noqa: ASYNC110 - a counter tells nobody
            await trio.sleep(0.005)


async def wait_listeners(observer, count: int) -> list[int]:
    """Ask the server until *count* connections listen; return their processes."""
    with trio.fail_after(WAIT_S):
        while len(rows := await observer.fetch(LISTENERS)) != count:
            await observer.execute("select pg_sleep(0.005)")
    return [row["pid"] for row in rows]


async def wait_clients(observer, count: Callable[[], int]) -> None:
    """Ask the server until it has *count* other clients in this database."""
    with trio.fail_after(WAIT_S):
        while await observer.fetchval(CLIENTS) != count():
            await observer.execute("select pg_sleep(0.005)")


# -- how soon, how often


@pytest.mark.slow
@pytest.mark.parametrize("interval_s", [QUICK.notify_interval_s, DEFAULT_LIMITS.notify_interval_s])
async def test_another_process_is_woken_in_milliseconds(postgres_dsn, interval_s):
    limits = Limits(notify_interval_s=interval_s)
    delays = []
    async with open_wakeups(postgres_dsn, limits) as one, open_wakeups(postgres_dsn, limits) as other:
        with other.listen("queue") as wakeup:
            for _ in range(100):
                began_at = trio.current_time()
                one.tell("queue")
                await wait_told(wakeup)
                delays.append(trio.current_time() - began_at)

    p50, p95 = statistics.median(delays), sorted(delays)[94]
    print(f"\nanother process woken, told again at once, interval {interval_s * 1000:.0f} ms: ", end="")
    print(f"p50 {p50 * 1000:.1f} ms, p95 {p95 * 1000:.1f} ms, worst {max(delays) * 1000:.1f} ms")
    assert p50 < 0.25  # half of the poll that would find it as well


async def test_a_thousand_tells_are_a_few_statements(postgres_dsn, heard):
    metrics, limits, topics = Metrics(), Limits(notify_interval_s=0.02), ("queue", "a", "b")
    async with open_wakeups(postgres_dsn, limits, metrics) as wakeups:
        began_at = trio.current_time()
        for number in range(1000):
            wakeups.tell(topics[number % 3])
            await trio.lowlevel.checkpoint()
        wakeups.tell("last")
        await heard.wait_topics(*topics, "last")
        elapsed_s = trio.current_time() - began_at

    statements = value(metrics, "notify_statements")
    print(f"\n1,001 tells of 4 topics in {elapsed_s * 1000:.0f} ms: {statements:.0f} statements")
    assert 1 <= statements <= elapsed_s / 0.02 + 2
    assert len(heard.payloads) == statements
    assert all(len(payload.split()) - 1 <= 4 for payload in heard.payloads)


async def test_a_process_that_tells_nothing_sends_nothing(postgres_dsn):
    metrics = Metrics()
    async with open_wakeups(postgres_dsn, QUICK, metrics):
        await trio.testing.wait_all_tasks_blocked(0.02)
    assert value(metrics, "notify_statements") == 0
    assert value(metrics, "listen_failures") == 0


async def test_beyond_the_bound_one_word_wakes_everybody(postgres_dsn, heard):
    limits = Limits(notify_topics=5)
    async with open_wakeups(postgres_dsn, limits) as one, open_wakeups(postgres_dsn) as other:
        with other.listen("seldom") as seldom, other.listen("t2") as second:
            for number in range(5):
                one.tell(f"t{number}")
            await wait_told(second)
            for number in range(100):
                one.tell(f"t{number}")
            for wakeup in (seldom, second):
                await wait_told(wakeup)
            await heard.wait_topics("*")
    assert [payload.split()[1:] for payload in heard.payloads] == [["t0", "t1", "t2", "t3", "t4"], ["*"]]


async def test_as_many_topics_as_allowed_fit_into_a_payload(postgres_dsn, heard):
    topics = [f"{number:0{TOPIC_CHARACTERS_MAX}}" for number in range(DEFAULT_LIMITS.notify_topics)]
    metrics = Metrics()
    async with open_wakeups(postgres_dsn, Limits(), metrics) as one:
        for topic in topics:
            one.tell(topic)
        await heard.wait_topics(*topics)
    assert value(metrics, "notify_statements") == 1
    assert value(metrics, "notify_failures") == 0
    with pytest.raises(ValueError, match="notify_topics"):
        Limits(notify_topics=DEFAULT_LIMITS.notify_topics + 1)
    assert 2 * MARK_BYTES + len(topics) * (1 + TOPIC_CHARACTERS_MAX) < PAYLOAD_BYTES


async def test_a_process_ignores_its_own_notifications(postgres_dsn, heard):
    async with open_wakeups(postgres_dsn) as one, open_wakeups(postgres_dsn) as other:
        with one.listen("a") as own, one.listen("b") as marker:
            one.tell("a")
            await wait_told(own)
            await heard.wait_topics("a")  # sent, so the answer to the marker comes after the echo
            other.tell("b")
            await wait_told(marker)
            with trio.move_on_after(0.02) as scope:
                await own.wait()
            assert scope.cancelled_caught


@pytest.mark.parametrize("payload", ["", " ", "stranger", "stranger  é * Queue", "x" * 7000])
async def test_what_strangers_say_on_the_channel_does_no_harm(postgres_dsn, connection, payload):
    with structlog.testing.capture_logs() as logs:
        async with open_wakeups(postgres_dsn) as one:
            with one.listen("after") as wakeup:
                await connection.fetchval("select pg_notify($1, $2)", CHANNEL, payload)
                await connection.fetchval("select pg_notify($1, 'stranger after')", CHANNEL)
                await wait_told(wakeup)
    assert logs == []


# -- outages


async def test_a_listener_that_loses_its_connection_gets_another_and_everybody_is_woken(postgres_dsn, connection):
    metrics = Metrics()
    with structlog.testing.capture_logs() as logs:
        async with open_wakeups(postgres_dsn) as one, open_wakeups(postgres_dsn, QUICK, metrics) as other:
            with other.listen("a") as a, other.listen("b") as b:
                for number in range(1, 4):
                    for pid in await wait_listeners(connection, 2):
                        await connection.execute("select pg_terminate_backend($1)", pid)
                    await wait_told(a)
                    await wait_told(b)
                    assert value(metrics, "listen_failures") == number
                    one.tell("b")
                    await wait_told(b)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == 6 * [("listen_failed", "warning")]
    # one for each outage, three times in two processes


@pytest.mark.slow
async def test_postgres_may_be_gone_for_a_while(server_dir):
    metrics, limits = Metrics(), Limits(listen_retry_s=0.04, listen_retry_cap_s=0.16)
    options = EmbeddedPostgresOptions(durable=False)
    async with trio.open_nursery() as nursery:
        with structlog.testing.capture_logs() as logs:
            async with open_embedded_postgres(server_dir, options) as server:
                one = await nursery.start(_hold_wakeups, server.dsn, limits, Metrics())
                other = await nursery.start(_hold_wakeups, server.dsn, limits, metrics)
            began_at = trio.current_time()
            with other.listen("seldom") as seldom, other.listen("a") as a:
                await wait_value(metrics, "listen_failures", 6)
                for number in range(1, 4):
                    other.tell("lost")
                    await wait_value(metrics, "notify_failures", number)
                gone_s = trio.current_time() - began_at
                tries = value(metrics, "listen_failures")
                async with open_embedded_postgres(server_dir, options):
                    await wait_told(seldom)
                    await wait_told(a)
                    await _tell_until_heard(one, "seldom", seldom)
                    nursery.cancel_scope.cancel()
    print(f"\nwithout PostgreSQL for {gone_s:.1f} s: {tries:.0f} tries to listen")
    assert tries <= gone_s / (limits.listen_retry_s / 2) + 2
    events = [(entry["event"], entry["log_level"]) for entry in logs if entry["event"].startswith(("listen", "notify"))]
    assert events.count(("listen_failed", "warning")) == 2
    assert events.count(("notify_failed", "warning")) == 1
    assert "error" not in {level for _, level in events}


async def _hold_wakeups(dsn, limits, metrics, *, task_status):
    async with open_wakeups(dsn, limits, metrics) as wakeups:
        task_status.started(wakeups)
        await trio.sleep_forever()


async def _tell_until_heard(teller, topic, wakeup):
    """The teller may be in its longest pause, or be the next one to be connected: a hint may be lost, not all."""
    with trio.fail_after(WAIT_S):
        while True:
            teller.tell(topic)
            with trio.move_on_after(0.05):
                await wakeup.wait()
                return


async def test_a_connection_that_the_network_swallowed_is_replaced(postgres_dsn):
    metrics = Metrics()
    limits = Limits(
        listen_check_s=0.05, store_call_s=0.1, store_wait_s=0.2, listen_retry_s=0.01, listen_retry_cap_s=0.02
    )
    with structlog.testing.capture_logs() as logs:
        async with open_front(postgres_dsn) as front:
            dsn = front.dsn(urlsplit(postgres_dsn).path[1:])
            async with open_wakeups(dsn, limits, metrics) as far, open_wakeups(postgres_dsn) as near:
                with far.listen("a") as wakeup:
                    front.frozen = trio.Event()
                    await wait_value(metrics, "listen_failures", 2)
                    front.frozen.set()
                    await wait_told(wakeup)
                    await _tell_until_heard(near, "a", wakeup)
    assert logs[0]["event"] == "listen_failed"


async def test_a_refused_statement_is_counted_and_the_next_one_is_sent(postgres_dsn, monkeypatch, heard):
    metrics = Metrics()
    with structlog.testing.capture_logs() as logs:
        async with open_wakeups(postgres_dsn, QUICK, metrics) as one:
            with monkeypatch.context() as patch:
                patch.setattr(notifications, "CHANNEL", "")  # PostgreSQL refuses a channel without a name
                for number in range(1, 4):
                    one.tell("a")
                    await wait_value(metrics, "notify_failures", number)
            one.tell("b")
            await heard.wait_topics("b")
    assert [entry["event"] for entry in logs] == ["notify_failed"]
    assert "wake_processes" in logs[0]["reason"]


async def test_an_error_nobody_thought_of_ends_neither_direction(postgres_dsn, monkeypatch, heard):
    metrics = Metrics()

    async def fail(*_):
        raise ZeroDivisionError

    with structlog.testing.capture_logs() as logs:
        async with open_process_pool(postgres_dsn) as pool, trio.open_nursery() as nursery:
            wakeups = PostgresWakeups(pool, QUICK, metrics)
            with monkeypatch.context() as patch, wakeups.listen("a") as wakeup:
                patch.setattr(pool, "_open_connection", fail)
                nursery.start_soon(wakeups.run)
                wakeups.tell("a")
                await wait_told(wakeup)
                await wait_value(metrics, "notify_failures", 1)
                await wait_value(metrics, "listen_failures", 2)
                patch.undo()
                await wait_told(wakeup)
                wakeups.tell("b")
                await heard.wait_topics("b")
            nursery.cancel_scope.cancel()
    assert {"notify_failed", "listen_failed"} == {e["event"] for e in logs if e["log_level"] == "error"}


async def test_pauses_grow_up_to_the_cap_and_shrink_after_some_calm_only(autojump_clock):
    limits = Limits(listen_retry_s=1.0, listen_retry_cap_s=8.0)
    outage = Outage("listen", limits)
    with structlog.testing.capture_logs() as logs:
        for longest in (1, 2, 4, 8, 8):
            assert longest / 2 <= outage.note_failure("why") <= longest
            await trio.sleep(longest)
        outage.note_success()
        assert 4 <= outage.note_failure("again") <= 8
        outage.note_success()
        await trio.sleep(17)
        assert 0.5 <= outage.note_failure("later") <= 1
    assert [entry["reason"] for entry in logs] == ["why", "again", "later"]


# -- the end


@pytest.mark.slow
async def test_cancelled_at_any_step_no_connection_is_left(postgres_dsn, connection):
    async def scenario(pool, topic):
        wakeups = PostgresWakeups(pool, QUICK)
        async with trio.open_nursery() as nursery:
            with wakeups.listen(topic) as wakeup:
                wakeups.tell(topic)
                await wakeup.wait()
                nursery.start_soon(wakeups.run)
                await wait_told(wakeup)
            nursery.cancel_scope.cancel()

    async with open_process_pool(postgres_dsn) as pool:
        for step in range(STEPS_MAX):
            with CancelAtStep(step) as cancel:
                await scenario(pool, secrets.token_hex(16))
            await wait_clients(connection, lambda: pool.statistics().size)
            assert pool.statistics().waiting == 0
            if not cancel.fired:
                break
        assert not cancel.fired
        print(f"\ncancelled at each of {step} steps")
        assert await pool.fetchval("select 1") == 1
    await wait_clients(connection, lambda: 0)


async def test_what_is_told_before_and_after_the_run_is_kept_within_the_bound(postgres_dsn):
    async with open_process_pool(postgres_dsn) as pool:
        wakeups = PostgresWakeups(pool, QUICK)
        for number in range(10_000):
            wakeups.tell(f"{number}")
        assert len(wakeups._untold) == 1
        with suppress(AssertionError):
            wakeups.tell("no topic")
        assert len(wakeups._untold) == 1
