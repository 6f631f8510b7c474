"""What commands share: output for people and programs, exit codes, where settings and servers come from."""

import asyncio
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import cyclopts
import pytest
from pydantic import SecretStr

from config import commands, dev, operate
from config.commands import Common, main, need, place_of, postgres_there, settings_for, show
from config.errors import Away, Failure, InUse, Usage
from config.loading import Mistake, SettingsError
from config.migrate import MigrationError
from config.servers import Guardian, Place, Postgres, ServerError, Valkey, free_port
from config.settings import Database, Redis, Settings, with_values


@dataclass
class Item:
    name: str
    number: int | None


def test_a_list_is_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    show([Item("first", 1), Item("b", None)], as_json=False)
    assert capsys.readouterr().out == "NAME   NUMBER\nfirst  1\nb      -\n"
    show([{"a": True, "b": ["x", "y"], "c": {"d": 1}, "e": []}], as_json=False, columns=["b", "a", "c", "e"])
    assert capsys.readouterr().out == 'B     A    C         E\nx, y  yes  {"d": 1}  -\n'
    show([], as_json=False)
    assert capsys.readouterr().out == "(none)\n"


def test_one_object_is_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    show({"name": "x", "longer": False}, as_json=False)
    assert capsys.readouterr().out == "name    x\nlonger  no\n"
    show("text", as_json=False)
    assert capsys.readouterr().out == "text\n"


def test_json_is_one_line_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    show([Item("first", 1)], as_json=True)
    assert capsys.readouterr().out == '[{"name": "first", "number": 1}]\n'


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://user:secret@db:5432/x?password=secret", "db:5432/x"),
        ("redis://:secret@cache:6379/0", "cache:6379/0"),
        ("nonsense", "nonsense"),
        ("redis://[::1", "[::1"),
        ("", "?"),
    ],
)
def test_a_url_is_told_without_its_credentials(url: str, place: str) -> None:
    assert place_of(url) == place


@pytest.mark.parametrize(
    "url",
    [
        *("://u:hunter/2@h/x", "://u:hunter#2@h/x", "://u:hunter?2@h/x", "://u:hunter@2@h:x/x", "://u:hunter2@[h/x"),
        "ql://u:hunter2@h/x",
    ],
)
async def test_a_url_that_is_none_was_waited_for_and_shown_with_its_password(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingsError, match=r"database\.url: is no URL of PostgreSQL \(in a user or password"):
        await postgres_there(Database.model_construct(url=SecretStr(f"postgresql{url}")))
    with pytest.raises(SettingsError, match=r"redis\.url: is no URL of Redis"):
        await commands.redis_there(Redis.model_construct(url=SecretStr("http" + url)))
    assert "hunter" not in capsys.readouterr().err
    assert "hunter" not in place_of(f"postgresql{url}")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (Failure("went wrong"), 1, "error: went wrong"),
        (Away("not there"), 69, "error: not there"),
        (InUse("taken"), 75, "error: taken"),
        (MigrationError("0001"), 1, "error: 0001"),
        (ServerError("postgres"), 1, "error: postgres"),
        (
            SettingsError([Mistake("a", "1", "is wrong"), Mistake("b", "", "too", "hint")]),
            2,
            "settings: a = 1: is wrong",
        ),
        (ConnectionRefusedError("no"), 1, "error: ConnectionRefusedError: no"),
    ],
)
def test_every_error_has_its_exit_code(
    error: Exception, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = cyclopts.App(name="x")

    @app.command
    async def fail() -> None:
        raise error

    assert main(app, ["fail"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err


def test_what_a_command_returns_is_its_exit_code() -> None:
    app = cyclopts.App(name="x")

    @app.command
    def seven() -> int:
        return 7

    @app.command
    def nothing() -> str:
        return "done"

    assert main(app, ["seven"]) == 7
    assert main(app, ["nothing"]) == 0
    assert main(app, ["nothing", "--more"]) == 2


async def test_a_database_that_is_not_there_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    database = Database.model_validate({"url": f"postgresql://u:hunter2@127.0.0.1:{free_port()}/x"})
    with pytest.raises(Away, match=r"PostgreSQL at 127\.0\.0\.1:\d+/x is not there after 0 s: ConnectionRefused"):
        await postgres_there(database, patience=0.05)
    assert "hunter2" not in capsys.readouterr().err


async def test_a_wrong_password_was_waited_for_as_if_the_server_were_away(
    open_folder: Path, guardian: Guardian, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.at(open_folder)
    postgres = Postgres(place, password="right", durable=False, guardian=guardian)
    valkey = Valkey(place, password="right", guardian=guardian)
    try:
        for server in (postgres, valkey):
            await asyncio.to_thread(server.start)
        wrong = postgres.url.replace(":right@", ":hunter2@")
        with pytest.raises(SettingsError, match=r"database\.url: PostgreSQL at .* refuses the user or password: pass"):
            await postgres_there(Database.model_validate({"url": wrong}))
        for wrong in (valkey.url.replace(":right@", ":hunter2@"), valkey.url.replace(":right@", "")):
            with pytest.raises(SettingsError, match=r"redis\.url: Redis at .* refuses the user or password: "):
                await commands.redis_there(Redis.model_validate({"url": wrong}))
    finally:
        for server in (valkey, postgres):
            await asyncio.to_thread(server.stop)
        place.remove()
    assert "hunter2" not in capsys.readouterr().err


async def test_a_database_that_takes_connections_and_says_nothing_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        database = Database.model_validate({"url": f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/x"})
        real = asyncpg.connect
        monkeypatch.setattr(asyncpg, "connect", lambda url, **k: real(url, **{**k, "timeout": 0.1}))
        with pytest.raises(Away, match="TimeoutError"):
            await postgres_there(database, patience=0.05)


async def test_an_old_database_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "MIN_POSTGRES", 990000)
    with pytest.raises(Failure, match="is too old"):
        await postgres_there(settings.database)
    monkeypatch.setattr(commands, "MIN_REDIS", (99, 0))
    with pytest.raises(Failure, match="is too old"):
        await commands.redis_there(settings.redis)


def test_only_what_a_command_needs_must_be_set() -> None:
    with pytest.raises(SettingsError, match=r"database\.url: is needed"):
        need(Settings(), "database.url")
    need(with_values(Settings(), {"database.url": "postgresql://x"}), "database.url")


def test_a_command_takes_the_gateway_that_runs_in_the_folder(tmp_path: Path) -> None:
    folder = dev.Folder(tmp_path)
    common = Common(data=tmp_path)
    with folder.held():
        folder.announce(
            dev.Info(
                url="http://127.0.0.1:1",
                websocket="ws://127.0.0.1:1",
                admin=dev.Admin("a", "b"),
                api_key="k",
                database_url="postgresql://here",
                redis_url="redis://here",
                pids=dev.Pids(1, 2, [3]),
            )
        )
        found = settings_for(common, {})
        assert found.database.url.get_secret_value() == "postgresql://here"
        assert found.sessions.secret_key.get_secret_value() == folder.secrets.secret_key
        with pytest.raises(SettingsError):  # a database of the settings wins, and then everything must be set
            settings_for(common, {"DATABASE_URL": "postgresql://there"})
        folder.leaving()
        assert dev.running(tmp_path) is None
    with pytest.raises(SettingsError):
        settings_for(common, {})


def test_a_folder_has_one_owner_and_keeps_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new"
    with dev.Folder(path).held() as first:
        with pytest.raises(InUse, match="in use"), dev.Folder(path).held():
            pass
        made = first.secrets
        first.leaving()
        monkeypatch.setattr(dev, "LEAVING_LIMIT", 0.1)
        with pytest.raises(InUse, match="in use"), dev.Folder(path).held():
            pass
    with dev.Folder(path).held() as second:
        assert second.secrets == made
    assert len({made.secret_key, made.pepper, made.api_key, made.admin_password, made.postgres_password}) == 5
    assert min(map(len, (made.secret_key, made.pepper, made.api_key))) >= 32


def test_an_unreadable_folder_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match="not a folder"), dev.Folder(tmp_path / "file").held():
        pass
    (tmp_path / "secrets.json").write_text("{")
    with pytest.raises(Failure, match=r"secrets\.json cannot be read"), dev.Folder(tmp_path).held():
        pass


def test_dev_json_of_a_killed_gateway_is_none(tmp_path: Path) -> None:
    with dev.Folder(tmp_path).held():
        (tmp_path / "dev.json").write_text("{}")
        (tmp_path / "dev.json").rename(tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / "dev.json")
    assert dev.running(tmp_path) is None
    assert dev.running(tmp_path / "none") is None


def test_dev_fills_in_what_is_unset_and_leaves_what_is_set() -> None:
    made = dev.Secrets.make()
    filled = dev.fill(Settings(), made, port=8123)
    assert filled.client.allowed_origins == ["http://127.0.0.1:8123", "http://localhost:8123"]
    assert [n.name for n in filled.channel.namespaces] == ["chat", "game", "news"]
    assert filled.http_api.key.get_secret_value() == made.api_key
    assert filled.auth.register_per_address_per_hour == 0
    given = {
        "http_api": {"key": "short"},
        "auth": {"register_per_address_per_hour": 3},
        "client": {"allowed_origins": ["https://example.org"]},
        "channel": {"namespaces": [{"name": "game"}, {"name": "mine"}]},
    }
    filled = dev.fill(Settings.model_validate(given), made, port=1)
    assert filled.http_api.key.get_secret_value() == "short"
    assert filled.auth.register_per_address_per_hour == 3
    assert filled.client.allowed_origins[-1] == "https://example.org"
    assert [n.name for n in filled.channel.namespaces] == ["game", "mine", "chat", "news"]
    assert not filled.channel.namespaces[0].presence


def test_dev_takes_its_own_secret_where_the_file_sets_an_empty_one() -> None:
    made = dev.Secrets.make()
    filled = dev.fill(Settings.model_validate({"sessions": {"secret_key": ""}}), made, port=1)
    assert filled.sessions.secret_key.get_secret_value() == made.secret_key


def test_the_demo_namespaces_are_those_that_are_promised() -> None:
    chat, game, news = dev.fill(Settings(), dev.Secrets.make(), port=1).channel.namespaces
    common = {
        "allow_subscribe_for_client",
        "allow_publish_for_subscriber",
        "allow_presence_for_subscriber",
        "presence",
        "join_leave",
    }
    forced = {"force_push_join_leave", "force_positioning", "force_recovery"}
    history = {"history_size", "history_ttl"}

    def on(namespace: Any) -> set[str]:
        return {name for name, value in namespace if value and name != "name"}

    defaults = on(type(game)(name="xx"))
    assert on(chat) - defaults == common | forced | history | {"allow_history_for_subscriber"}
    assert (chat.history_size, chat.history_ttl) == (100, 300)
    assert on(game) - defaults == common
    assert on(news) - defaults == history | {"allow_subscribe_for_client", "allow_history_for_client"}


def test_the_banner_names_every_url() -> None:
    info = dev.Info(
        "http://u", "ws://w", dev.Admin("a@b", "pw"), "key", "postgresql://d", "redis://r", dev.Pids(1, 2, [])
    )
    text = dev.banner(info, folder=Path("/x"), moved=Path("/var/tmp/y"), colors=True)
    for part in ("http://u/", "ws://w", "a@b", "pw", "key", "postgresql://d", "redis://r", "/x", "/var/tmp/y", "/docs"):
        assert part in text


def test_without_a_database_the_way_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError):
        settings_for(Common(data=tmp_path), {})
    assert "start `make dev`, or name its folder with --data" in capsys.readouterr().err


async def test_migrate_applies_rehearses_and_lists(
    empty_database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert await operate.migrate(dry_run=True) == 0
    assert capsys.readouterr().out.startswith("Would apply:\n")
    assert await operate.migrate(common=Common(json=True)) == 0
    assert json.loads(capsys.readouterr().out)["applied"][0]["number"] == 1
    assert await operate.migrate() == 0
    assert "up to date" in capsys.readouterr().out
    assert await operate.migrate(status=True) == 0
    assert "applied" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_a_failure_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(Failure, match="file/below cannot be made: Not a directory"),
        dev.Folder(tmp_path / "file" / "below").held(),
    ):
        pass


def test_a_usage_failure_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise Usage("name one")

    app = cyclopts.App()
    app.default(command)
    assert main(app, []) == 2
    assert capsys.readouterr().err == "error: name one\n"
