"""Where the embedded PostgreSQL may run, and what its files say: the decisions, without a server."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from dwctl_trio.postgres import embedded_files as files
from dwctl_trio.postgres import embedded_system as system
from dwctl_trio.postgres.embedded import EmbeddedPostgresError


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory that every user of the machine may enter."""
    with tempfile.TemporaryDirectory(prefix="dwctl-embedded-") as directory:
        path = Path(directory).resolve()
        path.chmod(0o755)
        yield path


def test_a_place_for_binaries_that_cannot_be_made_is_explained(root: Path) -> None:
    (root / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match="as root the database runs as another user"):
        system.open_system_dir(root / "file" / "below")


def test_a_user_without_a_name_is_told_before_initdb_fails() -> None:
    nameless = system.Account(uid=4_000_000_000, gid=4_000_000_000, changes=False)
    with pytest.raises(EmbeddedPostgresError, match="user id 4000000000 has no name"):
        system.check_account_name(nameless)


@pytest.mark.parametrize(
    ("mode", "same_group", "reachable"),
    [(0o700, True, False), (0o710, True, True), (0o710, False, False), (0o711, False, True), (0o701, True, False)],
)
def test_another_user_reaches_a_directory_by_the_bits_that_are_his(
    root: Path, mode: int, same_group: bool, reachable: bool
) -> None:
    directory = root / "entered"
    directory.mkdir()
    directory.chmod(mode)
    gid = directory.stat().st_gid if same_group else 4_000_000_000
    account = system.Account(uid=4_000_000_000, gid=gid, changes=True)
    assert system.is_reachable(directory, account) is reachable
    assert system.is_reachable(directory, attrs.evolve(account, changes=False))


def test_a_place_for_binaries_that_others_can_write_to_is_refused(root: Path) -> None:
    system_dir = root / "system"
    system_dir.mkdir()
    system_dir.chmod(0o777)
    with pytest.raises(EmbeddedPostgresError, match="only root can write"):
        system.open_system_dir(system_dir)


def test_a_strangers_socket_directory_is_not_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    data_dir = root / "data"
    data_dir.mkdir()
    account = system.choose_account(data_dir)
    first_choice = system.open_socket_dir(data_dir, account)
    assert first_choice.parent == root
    first_choice.rmdir()
    first_choice.symlink_to(data_dir)
    second_choice = system.open_socket_dir(data_dir, account)
    second_choice.rmdir()
    assert second_choice.parent != root


def test_a_damaged_address_is_named_in_the_error(root: Path) -> None:
    data_dir = root / "data"
    data_dir.mkdir()
    (data_dir / files.ADDRESS_NAME).write_text("{}")
    with pytest.raises(EmbeddedPostgresError, match=r"embedded\.json is damaged"):
        files.read_address(data_dir)
