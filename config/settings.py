"""Every setting: its name, type, default and meaning, and how a file and the environment become one `Settings`.

Options that Centrifugo v6 has keep its path, name and form. Reading happens in `load`; whether a combination is safe to
run outside development is decided by `unsafe`. Nothing here opens a connection.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: Any) -> Any:
    """`"1h30m"` -> 5400.0; a bare number is not a duration, as in the reference."""
    if isinstance(value, float) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        parts = _DURATION.findall(value)
        if parts and "".join(n + u for n, u in parts) == value:
            return sum(float(n) * _UNITS[u] for n, u in parts)
    raise ValueError('a duration like "30s", "10m", "1h30m" or "14d"')


Seconds = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Secret = SecretStr


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Database(Section):
    url: Secret = Secret("")
    pool_size: Annotated[int, Field(ge=1, le=100)] = 3


class Redis(Section):
    url: Secret = Secret("")
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "wardgate"


class HttpServer(Section):
    address: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    internal_port: Annotated[int, Field(ge=0, le=65535)] = 0
    internal_address: str = "127.0.0.1"
    trusted_proxies: list[str] = []
    shutdown_timeout: Seconds = 10.0


class HttpApi(Section):
    """`key` is one static key with all scopes, as in the reference; named keys live in the database."""

    key: Secret = Secret("")
    insecure: bool = False
    error_mode: Literal["", "transport"] = ""


class Websocket(Section):
    message_size_limit: Annotated[int, Field(ge=1024, le=16 * 1024 * 1024)] = 65536


class Token(Section):
    """The issuer without a prefix: Centrifugo's connection tokens work unchanged."""

    hmac_secret_key: Secret = Secret("")
    rsa_public_key: str = ""
    ecdsa_public_key: str = ""
    jwks_public_endpoint: str = ""
    audience: str = ""
    issuer: str = ""
    user_id_claim: str = ""


class SubscriptionToken(Token):
    """Unless `enabled`, subscription tokens are verified with the keys of `client.token`."""

    enabled: bool = False


class Issuer(Token):
    """A further external issuer; its users are `<name>:<sub>`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class Client(Section):
    allowed_origins: list[str] = []
    token: Token = Token()
    subscription_token: SubscriptionToken = SubscriptionToken()
    issuers: list[Issuer] = []
    insecure: bool = False
    allow_anonymous_connect_without_token: bool = False
    disallow_anonymous_connection_tokens: bool = False
    ping_interval: Seconds = 25.0
    pong_timeout: Seconds = 8.0
    stale_close_delay: Seconds = 10.0
    expired_close_delay: Seconds = 25.0
    expired_sub_close_delay: Seconds = 25.0
    channel_limit: Count = 128
    queue_max_size: Annotated[int, Field(ge=4096)] = 1048576
    presence_update_interval: Seconds = 27.0
    channel_position_check_delay: Seconds = 40.0
    connection_limit: Count = 0
    user_connection_limit: Count = 0
    connections_per_address: Count = 0
    connection_rate_limit: Count = 0
    command_rate_limit: Annotated[int, Field(ge=1)] = 500
    history_max_publication_limit: Count = 300
    recovery_max_publication_limit: Count = 300
    subscribe_to_user_personal_channel: "PersonalChannel" = Field(default_factory=lambda: PersonalChannel())


class PersonalChannel(Section):
    enabled: bool = False
    personal_channel_namespace: str = ""
    single_connection: bool = False


class ChannelOptions(Section):
    presence: bool = False
    join_leave: bool = False
    force_push_join_leave: bool = False
    history_size: Count = 0
    history_ttl: Seconds = 0.0
    history_meta_ttl: Seconds = 0.0
    force_positioning: bool = False
    allow_positioning: bool = False
    force_recovery: bool = False
    allow_recovery: bool = False
    allow_subscribe_for_client: bool = False
    allow_subscribe_for_anonymous: bool = False
    allow_publish_for_subscriber: bool = False
    allow_publish_for_client: bool = False
    allow_publish_for_anonymous: bool = False
    allow_presence_for_subscriber: bool = False
    allow_presence_for_client: bool = False
    allow_presence_for_anonymous: bool = False
    allow_history_for_subscriber: bool = False
    allow_history_for_client: bool = False
    allow_history_for_anonymous: bool = False
    allow_user_limited_channels: bool = False
    channel_regex: str = ""


class Namespace(ChannelOptions):
    name: Annotated[str, Field(pattern=r"^[-a-zA-Z0-9_.]{2,}$")]


class Channel(Section):
    without_namespace: ChannelOptions = ChannelOptions()
    namespaces: list[Namespace] = []
    history_meta_ttl: Seconds = 720 * 3600.0
    max_length: Annotated[int, Field(ge=1, le=255)] = 255
    private_prefix: str = "$"
    namespace_boundary: str = ":"
    user_boundary: str = "#"
    user_separator: str = ","


class Sessions(Section):
    """`secret_key` is the master secret: what is sealed or authenticated at rest or in Redis derives from it."""

    secret_key: Secret = Secret("")
    previous_secret_keys: list[Secret] = []
    max_per_user: Annotated[int, Field(ge=1, le=1000)] = 20
    idle: Seconds = 14 * 86400.0
    absolute: Seconds = 90 * 86400.0
    policy: Literal["freeze", "serve"] = "freeze"
    hold: Seconds = 15.0
    max_hold: Seconds = 600.0


class Auth(Section):
    local_accounts: bool = True
    registration: bool = True
    issuer: str = "wardgate"
    audience: str = "wardgate"
    access_token_ttl: Seconds = 600.0
    access_token_algorithm: Literal["ES256", "EdDSA"] = "ES256"  # noqa: S105 - the name of an algorithm
    bcrypt_cost: Annotated[int, Field(ge=4, le=16)] = 12
    hash_threads: Annotated[int, Field(ge=1, le=64)] = 1
    hash_queue: Annotated[int, Field(ge=1, le=1000)] = 16
    pepper: Secret = Secret("")
    previous_peppers: list[Secret] = []
    password_min_length: Annotated[int, Field(ge=8, le=128)] = 12
    register_per_address_per_hour: Count = 20


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Settings(Section):
    """Everything, by section."""

    database: Database = Database()
    redis: Redis = Redis()
    http_server: HttpServer = HttpServer()
    http_api: HttpApi = HttpApi()
    websocket: Websocket = Websocket()
    client: Client = Client()
    channel: Channel = Channel()
    sessions: Sessions = Sessions()
    auth: Auth = Auth()
    log: Log = Log()
