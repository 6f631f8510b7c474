"""Settings from a file and the environment; every mistake at once, in words, and never a secret among them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from config import loading, reference
from config.loading import SettingsError
from config.settings import Settings, from_json, is_set, to_json, unsafe, with_values

SECRET = "a-secret-that-is-long-enough-0123456789"
SAFE = {
    "DATABASE_URL": "postgresql://db/wardgate",
    "REDIS_URL": "redis://cache",
    "WARDGATE_SESSIONS_SECRET_KEY": SECRET,
    "WARDGATE_AUTH_PEPPER": SECRET,
    "WARDGATE_AUTH_VERIFY_EMAIL": "false",
}


def mistakes(environ: Mapping[str, str], path: str | None = None, *, dev: bool = True) -> list[str]:
    """What `load` complains about, a line each."""
    with pytest.raises(SettingsError) as caught:
        loading.load(path, environ, dev=dev)
    return [str(mistake) for mistake in caught.value.mistakes]


def toml(folder: Path, text: str) -> str:
    file = folder / "settings.toml"
    file.write_text(text)
    return str(file)


def test_nothing_set_gives_the_documented_defaults() -> None:
    settings = loading.load(None, {}, dev=True)
    assert settings.sessions.max_per_user == 20
    assert settings.sessions.idle == 14 * 86400
    assert settings.sessions.absolute == 90 * 86400
    assert settings.auth.access_token_ttl == 600
    assert settings.client.user_connection_limit == settings.client.connections_per_address == 0
    assert settings.http_server.trusted_proxies == []
    assert settings.redis.prefix == "wardgate"


def test_a_file_is_read_and_a_variable_wins_over_it(tmp_path: Path) -> None:
    path = toml(tmp_path, '[client]\nping_interval = "10s"\npong_timeout = "3s"\n')
    settings = loading.load(path, {"WARDGATE_CLIENT_PING_INTERVAL": "1m30s"}, dev=True)
    assert (settings.client.ping_interval, settings.client.pong_timeout) == (90, 3)
    assert is_set(settings, "client.pong_timeout")
    assert not is_set(settings, "client.stale_close_delay")
    assert not is_set(settings, "auth.pepper")


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    path = toml(tmp_path, "[http_server]\nport = 9000\n")
    assert loading.load(None, {"WARDGATE_CONFIG": path}, dev=True).http_server.port == 9000


def pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


P256 = ec.generate_private_key(ec.SECP256R1())
PRIVATE = P256.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("rsa", "nonsense", "this cannot be read as one"),
        ("rsa", pem(P256), "this is not an RSA key"),
        ("rsa", pem(rsa.generate_private_key(65537, 1024)), "fewer than 2048 bits"),  # noqa: S505 - it is refused
        ("ecdsa", pem(ec.generate_private_key(ec.SECP256K1())), "not on P-256"),
        ("ecdsa", PRIVATE, "this is a private key"),
        ("ecdsa", pem(P256).replace("\n", "\\n"), "backslashes"),
    ],
)
def test_a_bad_key_was_found_by_the_workers_and_not_by_check_config(kind: str, text: str, why: str) -> None:
    variable = f"WARDGATE_CLIENT_TOKEN_{kind.upper()}_PUBLIC_KEY"
    [told] = mistakes({variable: text})
    assert told.startswith(
        f"client.token.{kind}_public_key: must be an {kind.upper()} public key in PEM, its first line"
    )
    assert why in told
    assert told.endswith(f"(from {variable})")
    assert not any(line in told for line in text.splitlines() if len(line) > 30 and "BEGIN" not in line)
    issuers = json.dumps([{"name": "corp", f"{kind}_public_key": text}])
    [told] = mistakes({"WARDGATE_CLIENT_ISSUERS": issuers})
    assert told.startswith(f"client.issuers[0].{kind}_public_key: must be an {kind.upper()} public key in PEM")
    assert told.endswith("(from WARDGATE_CLIENT_ISSUERS)")


def test_good_keys_are_taken() -> None:
    key = pem(P256)
    assert (
        loading.load(None, {"WARDGATE_CLIENT_TOKEN_ECDSA_PUBLIC_KEY": key}, dev=True).client.token.ecdsa_public_key
        == key
    )


def test_variables_carry_arrays_and_tables_as_json() -> None:
    settings = loading.load(
        None,
        {
            "WARDGATE_CLIENT_ALLOWED_ORIGINS": '["https://a.example", "http://localhost:3000"]',
            "WARDGATE_CHANNEL_NAMESPACES": '[{"name": "chat", "history_size": 5, "history_ttl": "1m"}]',
            "WARDGATE_CHANNEL_WITHOUT_NAMESPACE": '{"presence": true}',
            "WARDGATE_CLIENT_INSECURE": "true",
            "WARDGATE_CLIENT_CHANNEL_LIMIT": "7",
        },
        dev=True,
    )
    assert settings.client.allowed_origins == ["https://a.example", "http://localhost:3000"]
    assert settings.channel.namespaces[0].history_ttl == 60
    assert settings.channel.without_namespace.presence
    assert settings.client.insecure
    assert settings.client.channel_limit == 7


def test_lives_by_role_come_from_the_file_and_a_variable(tmp_path: Path) -> None:
    path = toml(tmp_path, '[sessions.roles.admin]\nabsolute = "12h"\n[sessions.roles.editor]\nidle = "1h"\n')
    roles = loading.load(path, {"WARDGATE_SESSIONS_ROLES": '{"admin": {"idle": "15m"}}'}, dev=True).sessions.roles
    assert {name: (life.absolute, life.idle) for name, life in roles.items()} == {
        "admin": (12 * 3600.0, 900.0),
        "editor": (0.0, 3600.0),
    }


def test_a_table_in_a_variable_is_laid_over_that_of_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "[channel.without_namespace]\npresence = true\njoin_leave = true\n")
    settings = loading.load(path, {"WARDGATE_CHANNEL_WITHOUT_NAMESPACE": '{"presence": false}'}, dev=True)
    assert not settings.channel.without_namespace.presence
    assert settings.channel.without_namespace.join_leave


def test_secrets_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET + "\n")
    (tmp_path / "url").write_text("postgresql://db/x")
    environ = {
        "WARDGATE_SESSIONS_SECRET_KEY_FILE": str(tmp_path / "key"),
        "DATABASE_URL_FILE": str(tmp_path / "url"),
    }
    settings = loading.load(None, environ, dev=True)
    assert settings.sessions.secret_key.get_secret_value() == SECRET
    assert settings.database.url.get_secret_value() == "postgresql://db/x"


def test_a_secret_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (line,) = mistakes({"WARDGATE_AUTH_PEPPER_FILE": str(tmp_path / "none")})
    assert line.startswith(f"auth.pepper = {tmp_path / 'none'}: ")
    assert "WARDGATE_AUTH_PEPPER_FILE cannot be read: No such file" in line


def test_a_value_and_its_file_together_are_refused(tmp_path: Path) -> None:
    (line,) = mistakes({"WARDGATE_AUTH_PEPPER": SECRET, "WARDGATE_AUTH_PEPPER_FILE": str(tmp_path)})
    assert line == "auth.pepper: given twice: by WARDGATE_AUTH_PEPPER and by WARDGATE_AUTH_PEPPER_FILE"
    (line,) = mistakes({"DATABASE_URL": "postgresql://a", "WARDGATE_DATABASE_URL": "postgresql://b"})
    assert "given twice" in line


def test_an_empty_variable_counts_as_unset() -> None:
    assert loading.load(None, {"WARDGATE_CLIENT_CHANNEL_LIMIT": "", "REDIS_URL": ""}, dev=True) == Settings()


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        foo = 1
        allowed_origins = []
        [http_server]
        port = 99999
        trusted_proxies = ["10.0.0.0/8", "nonsense"]
        [client]
        ping_intervall = "25s"
        pong_timeout = 8
        allowed_origins = ["https://a.example/"]
        [[client.issuers]]
        [channel.without_namespace]
        history_size = 3
        [[channel.namespaces]]
        name = "chat"
        channel_regex = "("
        presens = true
        [[channel.namespaces]]
        force_recovery = true
        name = "chat"
        [auth]
        bcrypt_cost = "many"
        [redis]
        prefix = "a b"
        """,
    )
    environ = {
        "WARDGATE_CLINT_PONG_TIMEOUT": "1s",
        "WARDGATE_CLIENT_STALE_CLOSE_DELAY": "soon",
        "WARDGATE_LOG_LEVEL": "loud",
        "WARDGATE_SESSIONS_PREVIOUS_SECRET_KEYS": "[1",
        "WARDGATE_CHANNEL_NAMESPACES_NAME": "x",
    }
    duration = 'must be a duration like "30s", "10m", "1h30m" or "14d"'
    none = "there is no such setting"
    found = mistakes(environ, path)
    assert set(found) == {
        f"foo: {none}",
        f"allowed_origins: {none} (did you mean client.allowed_origins?)",
        "http_server.port = 99999: must be a whole number from 0 to 65535",
        'http_server.trusted_proxies[1] = "nonsense": must be an address or a network like "10.0.0.0/8"',
        f"client.ping_intervall: {none} (did you mean client.ping_interval?)",
        f"client.pong_timeout = 8: {duration}",
        'client.allowed_origins[0] = "https://a.example/": must be an exact origin like "https://example.org", or "*"',
        "client.issuers[0].name: is needed: text of the form ^[a-z][a-z0-9-]{0,31}$",
        "channel.without_namespace: history_size and history_ttl are set both or not at all",
        'channel.namespaces[0].channel_regex = "(": must be a regular expression',
        f"channel.namespaces[0].presens: {none} (did you mean channel.namespaces[0].presence?)",
        "channel.namespaces[1]: force_recovery needs history_size and history_ttl",
        'auth.bcrypt_cost = "many": must be a whole number from 4 to 16',
        'redis.prefix = "a b": must be text of the form ^[A-Za-z0-9_.-]{1,64}$',
        f"WARDGATE_CLINT_PONG_TIMEOUT: {none} (did you mean WARDGATE_CLIENT_PONG_TIMEOUT?)",
        f'client.stale_close_delay = "soon": {duration} (from WARDGATE_CLIENT_STALE_CLOSE_DELAY)',
        'log.level = "loud": must be one of "none", "trace", "debug", "info", "warn", "warning", "error" '
        "(from WARDGATE_LOG_LEVEL)",
        "sessions.previous_secret_keys: must be an array, each item text (a secret), as JSON "
        "(from WARDGATE_SESSIONS_PREVIOUS_SECRET_KEYS)",
        f"WARDGATE_CHANNEL_NAMESPACES_NAME: {none} (did you mean WARDGATE_CHANNEL_NAMESPACES?)",
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '[[channel.namespaces]]\nname = "ab"\n[[channel.namespaces]]\nname = "ab"',
            "channel: channel namespaces with the same name: ab",
        ),
        (
            '[[client.issuers]]\nname = "a"\n[[client.issuers]]\nname = "a"',
            "client: issuers with the same name: a",
        ),
        (
            "[client.subscribe_to_user_personal_channel]\nenabled = true\npersonal_channel_namespace = 'me'",
            "settings: client.subscribe_to_user_personal_channel.personal_channel_namespace: "
            "there is no namespace 'me' in channel.namespaces",
        ),
        ("client = 3", "client: must be a table"),
        ("[client]\ntoken = []", "client.token: must be a table"),
        ("[channel]\nnamespaces = 3", "channel.namespaces: must be an array, each item a table"),
        ("[channel]\nnamespaces = [3]", "channel.namespaces[0]: must be a table"),
        ("[sessions]\nroles = 3", "sessions.roles: must be a table"),
        ("[sessions.roles]\nadmin = 3", "sessions.roles.admin: must be a table"),
        (
            "[sessions.roles.admin]\nidle = 3",
            'sessions.roles.admin.idle = 3: must be a duration like "30s", "10m", "1h30m" or "14d"',
        ),
        (
            '[sessions.roles.idle]\nidel = "3m"',
            "sessions.roles.idle.idel: there is no such setting (did you mean sessions.roles.idle.idle?)",
        ),
        (
            '[sessions.roles.Admin]\nidle = "3m"',
            "sessions: roles: 'Admin' is the name of no role (a-z, 0-9, _ and -, up to 32 characters)",
        ),
        (
            '[auth]\nsecond_factor_roles = ["admni"]\n[auth.roles]\nsupport = ["users:read"]',
            "auth: second_factor_roles: 'admni' is no role of auth.roles (there are: admin, support)",
        ),
    ],
)
def test_options_are_held_to_each_other(tmp_path: Path, text: str, line: str) -> None:
    assert mistakes({}, toml(tmp_path, text)) == [line]


def test_the_value_of_a_secret_is_never_told(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        [database]
        url = 12345678
        [auth]
        previous_peppers = [12345678]
        peper = "12345678"
        [client.token]
        hmac_secret_key = 12345678
        [[client.issuers]]
        name = "x"
        hmac_secret_key = { a = "12345678" }
        """,
    )
    found = mistakes({"WARDGATE_AUTH_PREVIOUS_PEPPERS": "12345678", "WARDGATE_CLIENT_ISSUERS": "[12345678"}, path)
    assert len(found) == 7
    assert "12345678" not in "\n".join(found)


def test_what_centrifugo_has_and_we_have_not_is_refused_by_that_word(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        [admin]
        enabled = true
        [client.proxy.connect]
        enabled = true
        [[channel.namespaces]]
        name = "chat"
        allow_tags_filter = true
        """,
    )
    found = mistakes({"WARDGATE_GRPC_API_ENABLED": "1", "WARDGATE_CLIENT_CONCURRENCY": "2"}, path)
    keys = ["WARDGATE_CLIENT_CONCURRENCY", "WARDGATE_GRPC_API_ENABLED", "admin", "client.proxy"]
    assert sorted(line.split(":")[0] for line in found) == sorted([*keys, "channel.namespaces[0].allow_tags_filter"])
    assert all("an option of Centrifugo that is not supported here" in line for line in found)


def test_no_option_is_ours_and_refused_at_once() -> None:
    assert [path for path in loading.options() if reference.known_path(path)] == []


def test_a_file_that_cannot_be_read_or_parsed_is_named(tmp_path: Path) -> None:
    (line,) = mistakes({}, str(tmp_path / "none.toml"))
    assert line == f"{tmp_path}/none.toml: the settings file cannot be read: No such file or directory"
    (line,) = mistakes({}, toml(tmp_path, "[client\n"))
    assert line.startswith(f"{tmp_path}/settings.toml: not TOML: ")
    (tmp_path / "settings.toml").write_bytes(b"\xff")
    (line,) = mistakes({}, str(tmp_path / "settings.toml"))
    assert line.endswith("not UTF-8")


def test_each_option_has_a_variable_of_its_own() -> None:
    variables = [option.variable for option in loading.options().values()]
    assert len(set(variables)) == len(variables)


def test_every_option_says_what_it_takes() -> None:
    assert [o.path for o in loading.options().values() if "something else" in o.accepted] == []


def test_other_peoples_variables_are_none_of_our_business() -> None:
    assert loading.load(None, {"PATH": "x", "WARDGATE_MAIN": "y", "PGHOST": "z"}, dev=True) == Settings()


def test_safe_settings_load_outside_development() -> None:
    assert unsafe(loading.load(None, SAFE)) == []


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("DATABASE_URL", "", "database.url"),
        ("REDIS_URL", "", "redis.url"),
        ("WARDGATE_SESSIONS_SECRET_KEY", "", "sessions.secret_key"),
        ("WARDGATE_SESSIONS_SECRET_KEY", "short", "sessions.secret_key"),
        ("WARDGATE_SESSIONS_PREVIOUS_SECRET_KEYS", '["short"]', "sessions.previous_secret_keys[0]"),
        ("WARDGATE_AUTH_PEPPER", "", "auth.pepper"),
        ("WARDGATE_AUTH_PREVIOUS_PEPPERS", '["short"]', "auth.previous_peppers[0]"),
        ("WARDGATE_HTTP_API_KEY", "short", "http_api.key"),
        ("WARDGATE_HTTP_API_INSECURE", "true", "http_api.insecure"),
        ("WARDGATE_CLIENT_INSECURE", "true", "client.insecure"),
        ("WARDGATE_CLIENT_ALLOWED_ORIGINS", '["*"]', "client.allowed_origins"),
        ("WARDGATE_AUTH_PASSKEY_RP_ID", "example.org", "auth.passkey_rp_id"),
        ("WARDGATE_AUTH_PASSKEY_ORIGINS", '["http://example.org"]', "auth.passkey_origins"),
        ("WARDGATE_AUTH_PASSKEY_ORIGINS", '["https://192.0.2.1"]', "auth.passkey_origins"),
        ("WARDGATE_CLIENT_TOKEN_HMAC_SECRET_KEY", "short", "client.token.hmac_secret_key"),
        (
            "WARDGATE_CLIENT_ISSUERS",
            '[{"name": "x", "hmac_secret_key": "short"}]',
            "client.issuers[0].hmac_secret_key",
        ),
        (
            "WARDGATE_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT",
            "http://keys.example/jwks.json",
            "client.token.jwks_public_endpoint",
        ),
        ("WARDGATE_AUTH_BREACHED_RANGE_URL", "http://hashes.example/range/", "auth.breached_range.url"),
        ("WARDGATE_AUTH_BCRYPT_COST", "9", "auth.bcrypt_cost"),
        ("WARDGATE_AUTH_REGISTER_PER_ADDRESS_PER_HOUR", "0", "auth.register_per_address_per_hour"),
    ],
)
def test_what_is_unsafe_is_refused_outside_development_and_passes_there(variable: str, value: str, key: str) -> None:
    environ = {**SAFE, variable: value}
    loading.load(None, environ, dev=True)
    (line,) = mistakes(environ, dev=False)
    assert line.startswith(f"{key}: ")
    assert line.endswith("(unsafe outside development)") or " is needed" in line


def test_without_local_accounts_no_pepper_is_needed() -> None:
    environ = {**SAFE, "WARDGATE_AUTH_PEPPER": "", "WARDGATE_AUTH_LOCAL_ACCOUNTS": "false"}
    loading.load(None, environ)


def test_settings_travel_to_a_child_whole() -> None:
    settings = loading.load(None, {**SAFE, "WARDGATE_CLIENT_PING_INTERVAL": "1.5s"})
    assert from_json(to_json(settings)) == settings


def test_settings_are_seen_with_where_they_came_from_and_without_secrets(tmp_path: Path) -> None:
    file = tmp_path / "wardgate.toml"
    file.write_text(
        f"""
        [client]
        ping_interval = "10s"
        allowed_origins = ["https://a.example"]
        [[client.issuers]]
        name = "shop"
        hmac_secret_key = "{SECRET}"
        [[client.issuers]]
        name = "keys"
        jwks_public_endpoint = "https://reader:{SECRET}@keys.example/jwks.json"
        """
    )
    environ = {**SAFE, "WARDGATE_CLIENT_ALLOWED_ORIGINS": '["https://b.example"]', "WARDGATE_MAIL": '{"product": "X"}'}
    settings = from_json(to_json(with_values(loading.load(str(file), environ), {"http_server.port": 1})))
    seen = {path: (value, origin) for path, value, origin in loading.seen(settings)}
    assert seen["client.ping_interval"] == (10.0, str(file))
    assert seen["client.allowed_origins"] == (["https://b.example"], "WARDGATE_CLIENT_ALLOWED_ORIGINS")
    assert seen["database.url"] == ("***", "DATABASE_URL")
    assert seen["auth.pepper"] == ("***", "WARDGATE_AUTH_PEPPER")
    assert seen["http_api.key"] == ("", "default")
    assert seen["auth.roles"] == ({"admin": ["*"]}, "default")
    assert seen["mail.product"] == ("X", "WARDGATE_MAIL")
    assert seen["http_server.port"] == (1, "run.py dev")
    issuers: Any = seen["client.issuers"]
    assert (issuers[0][0]["name"], issuers[0][0]["hmac_secret_key"], issuers[1]) == ("shop", "***", str(file))
    assert issuers[0][1]["jwks_public_endpoint"] == "https://***@keys.example/jwks.json"
    assert SECRET not in json.dumps(seen)
    assert set(seen) == {path for path, option in loading.options().items() if not (option.table or option.item)}


def test_values_can_be_laid_over_by_path() -> None:
    settings = with_values(Settings(), {"http_server.port": 1234, "client.allowed_origins": ["http://localhost:1"]})
    assert (settings.http_server.port, settings.client.allowed_origins) == (1234, ["http://localhost:1"])
    assert is_set(settings, "http_server.port")
    assert not is_set(settings, "log.format")


def test_guests_without_end_are_unsafe_where_guests_are_let_in() -> None:
    unlimited = {**SAFE, "WARDGATE_AUTH_GUESTS_PER_ADDRESS_PER_HOUR": "0"}
    assert loading.load(None, unlimited).auth.guests is False
    [line] = mistakes({**unlimited, "WARDGATE_AUTH_GUESTS": "true"}, dev=False)
    assert line.startswith("auth.guests_per_address_per_hour: 0 lets one address make guests without end")


def test_what_is_wrong_and_what_is_unsafe_is_told_at_once(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        [http_server]
        port = 99999
        [client]
        insecure = true
        alowed_origins = []
        allowed_origins = ["*", 1]
        [channel.without_namespace]
        history_size = 10
        [sessions]
        secret_key = "too short"
        [[channel.namespaces]]
        name = "a"
        """,
    )
    environ = {**SAFE, "WARDGATE_SESSIONS_SECRET_KEY": "", "WARDGATE_AUTH_PEPPER": ""}
    keys = [line.partition(":")[0].partition(" ")[0] for line in mistakes(environ, path, dev=False)]
    assert sorted(keys) == [
        "auth.pepper",
        "channel.namespaces[0].name",
        "channel.without_namespace",
        "client.allowed_origins[1]",
        "client.alowed_origins",
        "client.insecure",
        "http_server.port",
        "sessions.secret_key",
    ]


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("WARDGATE_CLIENT_PNG", ""),
        ("WARDGATE_CLINT", ""),
        ("WARDGATE_CLIENT_PNG_INTERVAL", " (did you mean WARDGATE_CLIENT_PING_INTERVAL?)"),
    ],
)
def test_an_unknown_variable_was_taken_for_the_name_of_a_section(variable: str, hint: str) -> None:
    assert mistakes({variable: "1"}) == [f"{variable}: there is no such setting{hint}"]


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("verify_email_link", "https://a.example/verify", 'a link like "https://example.org/reset#{token}"'),
        ("sender", "nobody", 'an address like "Example <no-reply@example.org>"'),
    ],
)
def test_a_bad_link_or_sender_was_told_to_be_text(option: str, value: str, accepted: str) -> None:
    variable = f"WARDGATE_MAIL_{option.upper()}"
    assert mistakes({variable: value}) == [f'mail.{option} = "{value}": must be {accepted} (from {variable})']


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http_server.port = true", "http_server.port = true: must be a whole number from 0 to 65535"),
        ('http_server.port = "8000"', 'http_server.port = "8000": must be a whole number from 0 to 65535'),
        ("http_server.port = 8000.0", "http_server.port = 8000.0: must be a whole number from 0 to 65535"),
        ('auth.guests = "yes"', 'auth.guests = "yes": must be true or false'),
        ("auth.guests = 1", "auth.guests = 1: must be true or false"),
        (
            "client.ping_interval = 2.5",
            'client.ping_interval = 2.5: must be a duration like "30s", "10m", "1h30m" or "14d"',
        ),
        (
            'channel.namespaces = [{name = "ok"}, {name = "chat", presence = "yes"}]',
            'channel.namespaces[1].presence = "yes": must be true or false',
        ),
    ],
)
def test_a_wrong_type_in_the_file_was_taken_for_what_it_looked_like(tmp_path: Path, text: str, told: str) -> None:
    assert mistakes({}, toml(tmp_path, text)) == [told]


def test_a_variable_is_text_that_is_parsed_also_over_a_wrong_type_in_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "http_server.port = true\n[auth]\nguests = 1\n")
    environ = {"WARDGATE_HTTP_SERVER_PORT": "8001", "WARDGATE_AUTH_GUESTS": "true"}
    settings = loading.load(path, environ, dev=True)
    assert (settings.http_server.port, settings.auth.guests) == (8001, True)


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("DATABASE_URL", "mysql://u:hunter2@x"),
        ("DATABASE_URL", "db/wardgate"),
        ("DATABASE_URL", "postgresql://u:hunter/2@h/x"),
        ("DATABASE_URL", "postgresql://u:hunt#2@h/x"),
        ("DATABASE_URL", "postgresql://u:hunter2@[h/x"),
        ("DATABASE_URL", "postgresql://u:hunter2@one:5432,two:99999/x"),
        ("REDIS_URL", "http://u:hunter2@x"),
        ("REDIS_URL", "redis://u:hunter/2@h"),
        ("REDIS_URL", "redis+sentinel://u:hunter2@one,two/0"),
        ("REDIS_URL", "unix://u:hunter2@"),
    ],
)
def test_check_config_was_fine_with_a_url_that_serve_refuses(variable: str, url: str) -> None:
    [told] = mistakes({**SAFE, variable: url}, dev=False)
    option, server = ("database.url", "PostgreSQL") if variable == "DATABASE_URL" else ("redis.url", "Redis")
    assert told.startswith(f"{option}: must be a URL of {server}")
    assert told.endswith(f"(from {variable})")
    assert "hunt" not in told


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("DATABASE_URL", "postgres://db"),
        ("DATABASE_URL", "postgresql://u:p%2Fw@one:5432,two:5433/x?sslmode=require"),
        ("DATABASE_URL", "postgresql://u:p@[::1]:5432,[::2]/x"),
        ("DATABASE_URL", "postgresql:///x?host=/run/postgresql"),
        ("REDIS_URL", "redis://:p@[::1]:6379/1"),
        ("REDIS_URL", "rediss://u:p@cache"),
        ("REDIS_URL", "unix://u:p@/run/valkey.sock?db=1"),
        ("REDIS_URL", "redis+sentinel://u:p@one,two:26379/0?sentinel_master_name=m&addr=three"),
        ("REDIS_URL", "rediss+sentinel://one/0?sentinel_master_name=m"),
    ],
)
def test_every_form_of_url_is_taken(variable: str, url: str) -> None:
    settings = loading.load(None, {**SAFE, variable: url})
    assert url in (settings.database.url.get_secret_value(), settings.redis.url.get_secret_value())


def test_options_that_do_not_go_together_hide_nothing_else() -> None:
    personal = "WARDGATE_CLIENT_SUBSCRIBE_TO_USER_PERSONAL_CHANNEL"
    environ = {f"{personal}_ENABLED": "true", f"{personal}_PERSONAL_CHANNEL_NAMESPACE": "nowhere"}
    lines = mistakes(environ, dev=False)
    assert "nowhere" in lines[0]
    assert [line.partition(":")[0] for line in lines[1:]] == [
        *("database.url", "redis.url", "sessions.secret_key", "auth.pepper", "auth.verify_email")
    ]


def test_of_a_file_that_cannot_be_read_only_that_is_told() -> None:
    assert mistakes({}, "/nowhere.toml", dev=False) == [
        "/nowhere.toml: the settings file cannot be read: No such file or directory"
    ]
