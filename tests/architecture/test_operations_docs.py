"""What the how-tos for operators advise agrees with the limits that the server keeps."""

import configparser
import re

import attrs
import pytest
from tests.architecture.test_docs import DOCS, code_blocks, read

from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.http import server
from dwctl_trio.postgres import embedded_server, guest_loop, pool
from dwctl_trio.postgres.embedded_files import ADDRESS_NAME, POSTGRES_MAJOR, Address
from dwctl_trio.postgres.embedded_system import WHEEL
from dwctl_trio.supervisor.workers import worker_end_s

HOW_TO = DOCS / "how-to"
PROXY = HOW_TO / "deploy-behind-a-proxy.md"
SYSTEMD = HOW_TO / "run-under-systemd.md"
DATABASE = HOW_TO / "use-your-own-postgresql.md"
BACKUP = HOW_TO / "backup-and-upgrade.md"
SECONDS = {"s": 1, "m": 60, "h": 3600}


def directives(kind: str) -> str:
    """The one configuration of this kind of proxy."""
    (text,) = code_blocks(PROXY, kind)
    return text


def seconds(name: str, text: str) -> int:
    found = re.search(rf"\b{name} (\d+)([smh])\b", text)
    assert found is not None, name
    return int(found[1]) * SECONDS[found[2]]


def ini(page: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(page)
    return parser


def unit() -> configparser.ConfigParser:
    (text,) = code_blocks(SYSTEMD, "ini")
    return ini(text)


def stream_end_s() -> float:
    limits = DEFAULT_LIMITS
    return limits.shutdown_grace_s + 2 * limits.terminal_write_s + server._TELL_S + server._BREAK_OFF_S


def leave_s() -> float:
    return DEFAULT_LIMITS.store_call_s + pool.CLOSE_S_MAX + guest_loop.CLOSE_S_MAX


def database_stop_s() -> float:
    return embedded_server.FAST_STOP_S_MAX + embedded_server.QUICK_STOP_S_MAX + embedded_server.KILL_S_MAX


def test_systemd_waits_for_longer_than_stopping_may_take() -> None:
    stop_s = int(unit()["Service"]["TimeoutStopSec"])

    assert stop_s > stream_end_s() + leave_s() + database_stop_s()


def test_systemd_waits_for_longer_than_a_worker_that_hangs_may_take() -> None:
    hung_s = worker_end_s(DEFAULT_LIMITS)

    assert int(unit()["Service"]["TimeoutStopSec"]) > hung_s + database_stop_s()
    assert f"after {hung_s} s, so that with the embedded PostgreSQL all ends within {hung_s + database_stop_s()} s" in (
        read(SYSTEMD)
    )


def test_the_table_of_stopping_has_the_figures_of_the_code() -> None:
    shown = [float(cell) for cell in re.findall(r"\| ([\d.]+) s \|$", read(SYSTEMD), flags=re.MULTILINE)]

    assert shown == [stream_end_s(), leave_s(), database_stop_s()]
    assert f"That is {sum(shown)} s" in read(SYSTEMD)


def test_systemd_leaves_the_embedded_database_to_the_server() -> None:
    service = unit()["Service"]

    assert service["KillMode"] == "mixed"
    assert service["Environment"] == f"TMPDIR=/run/{service['RuntimeDirectory']}"
    assert f"data_dir: /var/lib/{service['StateDirectory']}/" in read(SYSTEMD)


def test_nginx_passes_bodies_of_the_size_that_the_server_takes() -> None:
    for name in ("client_max_body_size", "client_body_buffer_size"):
        found = re.search(rf"\b{name} (\d+)m;", directives("nginx"))
        assert found is not None
        assert int(found[1]) * 1024 * 1024 == DEFAULT_LIMITS.request_body_bytes


def test_nginx_streams_and_tries_the_next_server() -> None:
    text = directives("nginx")

    assert {"proxy_buffering off;", "proxy_http_version 1.1;", 'proxy_set_header Connection "";'} <= {
        line.strip() for line in text.splitlines()
    }
    assert all(line.endswith("max_fails=0;") for line in text.splitlines() if "server 127" in line)
    assert "non_idempotent" not in text


@pytest.mark.parametrize(
    ("kind", "name"),
    [("nginx", "proxy_read_timeout"), ("haproxy", "timeout server"), ("haproxy", "timeout client")],
)
def test_a_proxy_waits_for_longer_than_the_longest_call_of_a_model(kind: str, name: str) -> None:
    assert seconds(name, directives(kind)) >= DEFAULT_LIMITS.upstream_total_s > DEFAULT_LIMITS.keep_alive_s


def test_nginx_lets_go_of_an_idle_connection_before_the_server_does() -> None:
    assert seconds("keepalive_timeout", directives("nginx")) < DEFAULT_LIMITS.idle_connection_s


@pytest.mark.parametrize(
    ("kind", "allowed", "refusal"),
    [
        ("nginx", "location /v1/ {", "return 404;"),
        ("caddy", "handle /v1/* {", "respond 404"),
        ("haproxy", "unless { path_beg /v1/ }", "return status 404"),
    ],
)
def test_a_proxy_lets_the_api_through_and_nothing_else(kind: str, allowed: str, refusal: str) -> None:
    text = directives(kind)

    assert allowed in text
    assert refusal in text
    assert "/metrics" not in text


def test_a_proxy_that_looks_after_servers_asks_whether_they_are_ready() -> None:
    assert "health_uri /readyz" in directives("caddy")
    assert "option httpchk GET /readyz" in directives("haproxy")


def test_a_pooler_has_a_connection_for_each_of_two_servers() -> None:
    (text,) = code_blocks(DATABASE, "ini")
    pooler = ini(text)["pgbouncer"]

    assert pooler["pool_mode"] == "session"
    assert int(pooler["default_pool_size"]) == 2 * (DEFAULT_LIMITS.store_connections + 1)


def test_a_statement_timeout_of_the_database_is_longer_than_that_of_the_server() -> None:
    found = re.search(r"statement_timeout = '(\d+)s'", read(DATABASE))

    assert found is not None
    assert int(found[1]) > DEFAULT_LIMITS.store_call_s


def test_the_connections_of_four_servers_are_counted_right() -> None:
    assert f"4 processes need {4 * (DEFAULT_LIMITS.store_connections + 1) + 5} of" in read(DATABASE)


def test_a_backup_uses_programs_and_an_address_that_are_there() -> None:
    page = read(BACKUP)

    assert f"{WHEEL}/pginstall{POSTGRES_MAJOR}/bin" in page
    assert f"/{ADDRESS_NAME}" in page
    assert f'"{attrs.fields(Address).socket_dir.name}": ' in page
