"""``/openapi.json``: everybody gets it, it says what it is, and it tells of every route of the application."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest

from dwctl_trio.app import open_api
from dwctl_trio.http.application import build_application
from dwctl_trio.testing.service import Service, open_service


@pytest.fixture
async def keyed(postgres_dsn: str) -> AsyncIterator[Service]:
    """A service that wants keys."""
    async with open_service(postgres_dsn, {"auth": {"mode": "keys"}}) as service:
        yield service


async def read(service: Service, method: str = "GET", **headers: str) -> httpx.Response:
    return await service.client.request(method, "/openapi.json", headers=headers)


async def test_the_document_is_given_without_a_key(keyed: Service) -> None:
    answer = await read(keyed)

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["x-request-id"]
    assert answer.json()["openapi"].startswith("3.1")


async def test_head_says_the_same_without_the_document(keyed: Service) -> None:
    whole, head = await read(keyed), await read(keyed, "HEAD")

    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-type", "content-length", "cache-control"):
        assert head.headers[name] == whole.headers[name]


async def test_who_has_the_document_is_told_so(keyed: Service) -> None:
    tag = (await read(keyed)).headers["etag"]

    for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = await read(keyed, **{"if-none-match": sent})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert (await read(keyed, **{"if-none-match": '"other"'})).status_code == 200


async def test_the_document_has_every_route_of_the_application_and_no_other(keyed: Service) -> None:
    told = (await read(keyed)).json()["paths"]

    async with open_api(keyed.config, keyed.pool) as (api, store):
        rules = [*build_application(api, store).url_map.iter_rules()]

    there = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD"}  # goes with every GET
    }

    assert {(method, path) for path, methods in told.items() for method in methods} == there


async def test_what_needs_no_key_is_what_the_document_says(keyed: Service) -> None:
    told = (await read(keyed)).json()["paths"]

    for path, methods in told.items():
        for method, operation in methods.items():
            answer = await keyed.client.request(method, re.sub(r"{\w+}", "x", path))
            assert (answer.status_code == 401) == (operation.get("security") != []), path
