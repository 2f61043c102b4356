"""API keys: the same behaviour of the fake and of PostgreSQL."""

import hashlib

import pytest

from dwctl_trio.domain.errors import StoreError
from dwctl_trio.ports import ApiKey


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def test_a_new_key_is_found_by_its_digest(lab):
    keys = lab.open_keys()
    key = await keys.create_key("blue")
    assert await keys.find_key(digest_of(key)) == ApiKey(prefix=key[: len("sk-dwctl-") + 6], owner="blue")


async def test_another_process_finds_it_too(lab):
    key = await lab.open_keys().create_key("blue")
    found = await lab.open_keys().find_key(digest_of(key))
    assert found is not None and found.owner == "blue"


@pytest.mark.parametrize("digest", [b"", b"\0" * 32, b"x" * 31, digest_of("sk-dwctl-unknown")])
async def test_an_unknown_digest_is_nobodys(lab, digest):
    keys = lab.open_keys()
    await keys.create_key("blue")
    assert await keys.find_key(digest) is None


async def test_the_key_itself_is_not_a_digest(lab):
    keys = lab.open_keys()
    key = await keys.create_key("blue")
    assert await keys.find_key(key.encode()) is None


async def test_a_revoked_key_is_nobodys_and_others_of_its_owner_hold(lab):
    keys = lab.open_keys()
    revoked, kept = await keys.create_key("blue"), await keys.create_key("blue")
    assert await keys.revoke_key(revoked[:15]) == "blue"
    assert await keys.find_key(digest_of(revoked)) is None
    assert await keys.find_key(digest_of(kept)) is not None


async def test_a_key_is_revoked_once_and_only_by_its_whole_prefix(lab):
    keys = lab.open_keys()
    key = await keys.create_key("blue")
    assert await keys.revoke_key(key[:14]) is None
    assert await keys.revoke_key(key) is None
    assert await keys.revoke_key("%") is None
    assert await keys.revoke_key(key[:15]) == "blue"
    assert await keys.revoke_key(key[:15]) is None


async def test_a_key_of_nobody_is_refused(lab):
    keys = lab.open_keys()
    with pytest.raises(StoreError):
        await keys.create_key("")
    assert list(await keys.list_keys()) == []


async def test_two_keys_of_one_owner_differ(lab):
    keys = lab.open_keys()
    assert len({await keys.create_key("blue") for _ in range(20)}) == 20


async def test_keys_are_listed_newest_first_with_their_state(lab):
    keys = lab.open_keys()
    older = await keys.create_key("blue")
    await lab.advance_clock(60)
    newer = await keys.create_key("red")
    await keys.revoke_key(older[:15])
    listed = [(row["prefix"], row["owner"], row["revoked_at"] is None) for row in await keys.list_keys()]
    assert listed == [(newer[:15], "red", True), (older[:15], "blue", False)]


async def test_a_list_of_keys_holds_no_key(lab):
    keys = lab.open_keys()
    key = await keys.create_key("blue")
    assert key not in repr([dict(row) for row in await keys.list_keys()])
