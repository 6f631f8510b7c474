"""Every setting: its name, type, default and meaning, and which combinations are unsafe outside development.

Options that Centrifugo v6 has keep its path, name and form. How a file and the environment become one `Settings`, and
how mistakes are reported, is in `config.loading`. Nothing here reads anything.
"""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from email.utils import formataddr, parseaddr
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    model_validator,
)

from config import scopes
from config.urls import several

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


def origin(value: str) -> str:
    """An exact Origin as a browser sends it, or `*`."""
    parts = urlsplit(value)
    bare = f"{parts.scheme}://{parts.netloc}"
    if value != "*" and (value != bare or not parts.hostname or "*" in value or value != value.lower()):
        raise ValueError('an exact origin like "https://example.org" (no path, no pattern), or "*"')
    return value


def network(value: str) -> str:
    """An address or a network."""
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError('an address or a network like "10.0.0.0/8"') from None
    return value


def regex(value: str) -> str:
    """A regular expression, or nothing."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None
    return value


def rsa_public_key(value: str) -> str:
    """A key that verifies RS256 and its kin, or nothing."""
    if value:
        from config import public_keys  # it takes long to load, and few settings have one

        public_keys.rsa(value)
    return value


def ecdsa_public_key(value: str) -> str:
    """A key that verifies ES256 and its kin, or nothing."""
    if value:
        from config import public_keys

        public_keys.ecdsa(value)
    return value


def postgres_url(value: SecretStr) -> SecretStr:
    """Where PostgreSQL is, on one host or several; or nothing. What is told of it shows no part of a password."""
    if url := value.get_secret_value():
        try:
            parts = several(url)
            for host in parts.hosts:
                _ = urlsplit(f"//{host}").port  # ValueError unless it is a number
            known = parts.before.startswith(("postgresql://", "postgres://"))
        except ValueError:
            known = False
        if not known:
            raise ValueError("a URL of PostgreSQL")
    return value


def redis_url(value: SecretStr) -> SecretStr:
    """Where Redis is, or who tells; or nothing."""
    if url := value.get_secret_value():
        from config.resp import Address  # it takes long to load

        try:
            Address.parse(url)
        except ValueError:
            raise ValueError("a URL of Redis") from None
        except OSError:  # a certificate that may be there where `serve` runs
            pass
    return value


def sender(value: str) -> str:
    """Who a letter is from: `Name <mailbox@domain>` or `mailbox@domain`, or nothing."""
    name, address = parseaddr(value)
    if value and (not re.fullmatch(r"[^@\s]+@[^@\s]+", address) or not value.isprintable()):
        raise ValueError('an address like "Example <no-reply@example.org>"')
    return formataddr((name, address)) if value else ""


def link(value: str) -> str:
    """A page of the application's, with `{token}` where the token goes; or nothing."""
    if value and (not value.startswith(("https://", "http://")) or value.count("{token}") != 1):
        raise ValueError('a link like "https://example.org/reset#{token}"')
    return value


def roles(value: Any) -> Any:
    """Roles, each with its scopes. `admin` may all unless it is named."""
    if not isinstance(value, Mapping):
        raise ValueError("no table")
    for role, granted in value.items():
        if not isinstance(granted, list | tuple) or not all(isinstance(scope, str) for scope in granted):
            raise ValueError(f"{role} is no array of scopes")
    wrong = [f"{role!r} is no name of a role" for role in value if not scopes.ROLE.fullmatch(role)]
    for role, granted in value.items():
        wrong += [f"{role}: {mistake}" for mistake in scopes.mistakes(granted)]
    if wrong:
        raise ValueError("; ".join(wrong))
    return {**scopes.DEFAULT_ROLES, **value}


def domain(value: str) -> str:
    """A domain as a browser names the site of an origin: no scheme, no port, no address; or nothing."""
    if value and not _is_domain(value):
        raise ValueError('a domain like "example.org" (no scheme, no port, lower case)')
    return value


_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")


def _is_domain(host: str) -> bool:
    return bool(_DOMAIN.fullmatch(host)) and len(host) <= 253 and not host.rpartition(".")[2].isdigit()


def passkey_origin(value: str) -> str:
    """An exact Origin, or what Android says of an app."""
    if re.fullmatch(r"android:apk-key-hash:[A-Za-z0-9_-]{20,100}", value):
        return value
    if origin(value) == "*":
        raise ValueError('an exact origin like "https://example.org", or "android:apk-key-hash:..."')
    return value


def http_url(value: str) -> str:
    """Where something is asked over HTTP, or nothing."""
    if value:
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        except ValueError:
            good = False
        if not good:
            raise ValueError("a URL")
    return value


def _distinct(what: str, names: Iterator[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what} with the same name: {', '.join(twice)}")


Seconds = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Secret = SecretStr
Origin = Annotated[str, AfterValidator(origin)]
Network = Annotated[str, AfterValidator(network)]
Domain = Annotated[str, AfterValidator(domain)]
PasskeyOrigin = Annotated[str, AfterValidator(passkey_origin)]
Regex = Annotated[str, AfterValidator(regex)]
RsaKey = Annotated[str, AfterValidator(rsa_public_key)]
EcdsaKey = Annotated[str, AfterValidator(ecdsa_public_key)]
PostgresUrl = Annotated[SecretStr, AfterValidator(postgres_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(redis_url)]
Link = Annotated[str, AfterValidator(link)]
Sender = Annotated[str, AfterValidator(sender)]
HttpUrl = Annotated[str, AfterValidator(http_url)]
Roles = Annotated[dict[str, tuple[str, ...]], BeforeValidator(roles)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Database(Section):
    url: PostgresUrl = Secret("")
    pool_size: Annotated[int, Field(ge=1, le=100)] = 3


class Redis(Section):
    url: RedisUrl = Secret("")
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "wardgate"


class HttpServer(Section):
    address: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    internal_port: Annotated[int, Field(ge=0, le=65535)] = 0
    internal_address: str = "127.0.0.1"
    trusted_proxies: list[Network] = []
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
    rsa_public_key: RsaKey = ""
    ecdsa_public_key: EcdsaKey = ""
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


class PersonalChannel(Section):
    enabled: bool = False
    personal_channel_namespace: str = ""
    single_connection: bool = False


class Client(Section):
    allowed_origins: list[Origin] = []
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
    subscribe_to_user_personal_channel: PersonalChannel = PersonalChannel()

    @model_validator(mode="after")
    def _consistent(self) -> "Client":
        _distinct("issuers", (i.name for i in self.issuers))
        return self


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
    min_aal: Annotated[int, Field(ge=1, le=2)] = 1
    channel_regex: Regex = ""

    @model_validator(mode="after")
    def _consistent(self) -> "ChannelOptions":
        if bool(self.history_size) != bool(self.history_ttl):
            raise ValueError("history_size and history_ttl are set both or not at all")
        if self.force_recovery and not self.history_size:
            raise ValueError("force_recovery needs history_size and history_ttl")
        return self


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

    @model_validator(mode="after")
    def _consistent(self) -> "Channel":
        _distinct("channel namespaces", (n.name for n in self.namespaces))
        return self


class Life(Section):
    """How long a session lives, and without activity; 0 is as long as everyone's."""

    absolute: Seconds = 0.0
    idle: Seconds = 0.0


class Sessions(Section):
    """`secret_key` is the master secret: what is sealed or authenticated at rest or in Redis derives from it.

    `max_cookie_per_user`, `max_token_per_user`: 0 is no cap beside `max_per_user`. `roles`: lives by role.
    `keep_ended`: so long after a login is over its row is kept; `keep_audit`: so long an audit row. 0 is for ever.
    """

    secret_key: Secret = Secret("")
    previous_secret_keys: list[Secret] = []
    max_per_user: Annotated[int, Field(ge=1, le=1000)] = 20
    max_cookie_per_user: Count = 0
    max_token_per_user: Count = 0
    idle: Annotated[Seconds, Field(gt=0)] = 14 * 86400.0
    absolute: Annotated[Seconds, Field(gt=0)] = 90 * 86400.0
    absolute_unremembered: Annotated[Seconds, Field(gt=0)] = 86400.0
    roles: dict[str, Life] = {}
    policy: Literal["freeze", "serve"] = "freeze"
    keep_ended: Seconds = 30 * 86400.0
    keep_audit: Seconds = 400 * 86400.0
    hold: Seconds = 15.0
    max_hold: Seconds = 600.0

    @model_validator(mode="after")
    def _consistent(self) -> "Sessions":
        if strange := [name for name in self.roles if not scopes.ROLE.fullmatch(name)]:
            raise ValueError(f"roles: {strange[0]!r} is the name of no role (a-z, 0-9, _ and -, up to 32 characters)")
        return self

    @property
    def secrets(self) -> list[bytes]:
        """`secret_key` and those before it, today's first."""
        return [key.get_secret_value().encode() for key in (self.secret_key, *self.previous_secret_keys)]

    def life(self, roles: Iterable[str], *, remember: bool = True) -> Life:
        """Of a session of a user with these roles: the shortest that applies."""
        lives = [self.roles[role] for role in roles if role in self.roles]
        most = self.absolute if remember else min(self.absolute, self.absolute_unremembered)
        return Life(
            absolute=min([most, *(life.absolute for life in lives if life.absolute)]),
            idle=min([self.idle, *(life.idle for life in lives if life.idle)]),
        )


class Challenge(Section):
    """A CAPTCHA or proof of work, judged by whoever is at `verify_url`. After `after` failures of an account an hour,
    from devices and addresses that are not known to it, it takes a solved one to go on."""

    verify_url: HttpUrl = ""
    secret: Secret = Secret("")
    site_key: str = ""
    provider: str = ""
    after: Annotated[int, Field(ge=1, le=1000)] = 20
    on_register: bool = False
    allow_networks: list[Network] = []

    @property
    def on(self) -> bool:
        """Whether anybody is ever asked."""
        return bool(self.verify_url)

    @model_validator(mode="after")
    def _consistent(self) -> "Challenge":
        named = (self.verify_url, self.secret.get_secret_value(), self.site_key)
        if any(named) and not all(named):
            raise ValueError("verify_url, secret and site_key are set together")
        if self.on_register and not self.on:
            raise ValueError("on_register needs verify_url, secret and site_key")
        return self


class BreachedRange(Section):
    """A service that knows which passwords were stolen, asked by the first five digits of a hash."""

    url: HttpUrl = ""
    when_away: Literal["accept", "refuse"] = "accept"
    allow_networks: list[Network] = []


class Auth(Section):
    local_accounts: bool = True
    registration: bool = True
    verify_email: bool = True
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
    admin_password_min_length: Annotated[int, Field(ge=8, le=128)] = 15
    breached_passwords: str = ""
    breached_range: BreachedRange = BreachedRange()
    register_per_address_per_hour: Count = 20
    fresh_for: Seconds = 900.0
    trust_device_for: Annotated[Seconds, Field(le=180 * 86400.0)] = 0.0
    impersonation_ttl: Annotated[Seconds, Field(gt=0, le=86400)] = 1800.0
    rate_limit_allow: list[Network] = []
    challenge: Challenge = Challenge()
    roles: Roles = {**scopes.DEFAULT_ROLES}
    second_factor_roles: list[str] = []
    passkey_rp_id: Domain = ""
    passkey_origins: list[PasskeyOrigin] = []
    guests: bool = False
    guests_per_address_per_hour: Count = 60

    @model_validator(mode="after")
    def _consistent(self) -> "Auth":
        if strange := [name for name in self.second_factor_roles if name not in self.roles]:
            known = ", ".join(sorted(self.roles))
            raise ValueError(f"second_factor_roles: {strange[0]!r} is no role of auth.roles (there are: {known})")
        return self


class Mail(Section):
    """How letters go out. With `folder` they are only written there, for development."""

    smtp_host: str = ""
    smtp_port: Annotated[int, Field(ge=1, le=65535)] = 587
    smtp_username: str = ""
    smtp_password: Secret = Secret("")
    smtp_tls: Literal["starttls", "implicit", "none"] = "starttls"
    sender: Sender = ""
    product: str = "Wardgate"
    language: Literal["en", "de"] = "en"
    templates: str = ""
    folder: str = ""
    verify_email_link: Link = ""
    reset_password_link: Link = ""
    change_email_link: Link = ""

    @property
    def on(self) -> bool:
        """Whether letters go anywhere."""
        return bool(self.folder or self.smtp_host)


class Webhooks(Section):
    """Where webhooks may lead beside public addresses over https."""

    allow_networks: list[Network] = []


class Log(Section):
    level: Literal["none", "trace", "debug", "info", "warn", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class RelyingParty(NamedTuple):
    """Whom passkeys are made for (WebAuthn, 4): `id` is a domain, which browsers hold them to; answers that come from
    elsewhere than `origins` are refused."""

    id: str
    origins: tuple[str, ...]


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
    mail: Mail = Mail()
    webhooks: Webhooks = Webhooks()
    log: Log = Log()
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, str]:
        """Where values came from, by path: a variable, a file, "run.py dev". What is not in it is the default."""
        return self._origins

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        personal = self.client.subscribe_to_user_personal_channel
        wanted = personal.personal_channel_namespace
        if personal.enabled and wanted and wanted not in {n.name for n in self.channel.namespaces}:
            raise ValueError(
                "client.subscribe_to_user_personal_channel.personal_channel_namespace: "
                f"there is no namespace {wanted!r} in channel.namespaces"
            )
        return self

    @property
    def relying_party(self) -> RelyingParty | None:
        """As set; else the host of the first of our origins that can have passkeys, those over https before others, and
        the origins that belong to it. None: there is no such origin, and no passkeys are made here."""
        able = [origin for origin in self.auth.passkey_origins or self.client.allowed_origins if _has_passkeys(origin)]
        able.sort(key=lambda origin: not origin.startswith("https://"))
        id = self.auth.passkey_rp_id or next(filter(None, map(_host, able)), "")
        origins = tuple(origin for origin in able if _belongs(origin, id))
        return RelyingParty(id, origins) if id and origins else None


def _host(origin: str) -> str:
    return urlsplit(origin).hostname or ""


def _has_passkeys(origin: str) -> bool:
    """Whether browsers make passkeys there: in secure contexts, on domains."""
    host = _host(origin)
    secure = origin.startswith("https://") or f".{host}".endswith(".localhost")
    return origin.startswith("android:") or (secure and _is_domain(host))


def _belongs(origin: str, rp_id: str) -> bool:
    return f".{_host(origin)}".endswith(f".{rp_id}") or origin.startswith("android:")


S = TypeVar("S", bound=BaseModel)


def is_set(settings: Section, path: str) -> bool:
    """Whether someone gave a value to the option at `path` ("auth.pepper"), be it the default's."""
    first, _, rest = path.partition(".")
    return first in settings.model_fields_set and (not rest or is_set(getattr(settings, first), rest))


def with_values(settings: S, values: Mapping[str, Any]) -> S:
    """A copy with other values at the given paths, validated. What nobody gave a value to stays so for `is_set`. They
    come from `run.py dev`, as far as anybody asks: it alone fills in what is unset."""
    tree = settings.model_dump(exclude_unset=True)
    for path, value in values.items():
        *sections, name = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    made = type(settings).model_validate(tree)
    if isinstance(settings, Settings):
        from_here(made, {**settings.origins, **dict.fromkeys(values, "run.py dev")})
    return made


def from_here(settings: BaseModel, origins: Mapping[str, str]) -> None:
    """Remember where the values came from."""
    assert isinstance(settings, Settings)  # noqa: S101 - sections have no origins of their own
    settings._origins = dict(origins)


def to_json(settings: Settings) -> bytes:
    """Everything, secrets in clear: for handing it to a child process over a pipe. `from_json` is the way back."""
    tree = {**settings.model_dump(), "origins": settings.origins}
    return json.dumps(tree, default=lambda secret: secret.get_secret_value()).encode()


def from_json(text: bytes) -> Settings:
    """What `to_json` made."""
    return from_tree(json.loads(text))


def from_tree(tree: Mapping[str, Any]) -> Settings:
    """The same, decoded already."""
    settings = Settings.model_validate({name: section for name, section in tree.items() if name != "origins"})
    from_here(settings, tree["origins"])
    return settings


SECRET_LENGTH = 32
MIN_BCRYPT_COST = 10
_HOW_TO_MAKE = 'make one with: python -c "import secrets; print(secrets.token_urlsafe(48))"'


def unsafe(settings: Settings) -> list[tuple[str, str]]:
    """(option, why) for everything that must not run outside development."""
    return [(path, why) for path, wrong, why in _unsafe(settings) if wrong]


def _unsafe(s: Settings) -> Iterator[tuple[str, bool, str]]:
    yield "database.url", not s.database.url.get_secret_value(), "is needed (or DATABASE_URL)"
    yield "redis.url", not s.redis.url.get_secret_value(), "is needed (or REDIS_URL)"
    yield "sessions.secret_key", not s.sessions.secret_key.get_secret_value(), f"is needed: {_HOW_TO_MAKE}"
    pepper_missing = s.auth.local_accounts and not s.auth.pepper.get_secret_value()
    yield "auth.pepper", pepper_missing, f"is needed with local accounts: {_HOW_TO_MAKE}"
    for path, secret in _secrets(s):
        yield path, 0 < len(secret.get_secret_value()) < SECRET_LENGTH, f"is shorter than {SECRET_LENGTH} characters"
    yield "client.insecure", s.client.insecure, "lets anyone connect as anyone"
    yield "http_api.insecure", s.http_api.insecure, "lets anyone use the server API"
    yield "client.allowed_origins", "*" in s.client.allowed_origins, '"*" lets any site use the cookies of its visitors'
    yield "auth.bcrypt_cost", s.auth.bcrypt_cost < MIN_BCRYPT_COST, f"must be {MIN_BCRYPT_COST} or more"
    unlimited = s.auth.local_accounts and s.auth.registration and not s.auth.register_per_address_per_hour
    yield "auth.register_per_address_per_hour", unlimited, "0 lets one address make accounts without end"
    wants_letters = s.auth.local_accounts and s.auth.registration and s.auth.verify_email
    mute = wants_letters and not (s.mail.on and s.mail.verify_email_link)
    yield (
        "auth.verify_email",
        mute,
        "false does without letters; true needs mail.smtp_host and mail.verify_email_link",
    )
    yield "mail.sender", bool(s.mail.smtp_host) and not s.mail.sender, "is needed to send mail"
    clear_password = s.mail.smtp_tls == "none" and bool(s.mail.smtp_password.get_secret_value())
    yield "mail.smtp_tls", clear_password, '"none" sends the password in clear'
    yield "mail.folder", bool(s.mail.folder), "keeps letters with links that log in: it is for development"
    unlimited = s.auth.local_accounts and s.auth.guests and not s.auth.guests_per_address_per_hour
    yield "auth.guests_per_address_per_hour", unlimited, "0 lets one address make guests without end"
    elsewhere = [origin for origin in s.auth.passkey_origins if not _has_passkeys(origin)]
    yield "auth.passkey_origins", bool(elsewhere), f"passkeys need https and a domain: {', '.join(elsewhere)} has none"
    rp_id = s.auth.passkey_rp_id
    foreign = [origin for origin in s.auth.passkey_origins if rp_id and not _belongs(origin, rp_id)]
    yield "auth.passkey_origins", bool(foreign), f"{', '.join(foreign)} does not belong to auth.passkey_rp_id"
    yield "auth.passkey_rp_id", bool(rp_id) and "." not in rp_id, "is nobody's own domain"
    yield "auth.passkey_rp_id", bool(rp_id) and s.relying_party is None, "no origin over https belongs to it"
    clear = s.auth.challenge.verify_url.startswith("http://") and not s.auth.challenge.allow_networks
    yield "auth.challenge.verify_url", clear, "over plain http the secret is anyone's: use https"
    clear = s.auth.breached_range.url.startswith("http://") and not s.auth.breached_range.allow_networks
    yield "auth.breached_range.url", clear, "over plain http anyone could say that a password is good: use https"
    for path, token in _tokens(s):
        clear = token.jwks_public_endpoint.startswith("http://")
        yield f"{path}.jwks_public_endpoint", clear, "keys that come over plain http can be anyone's: use https"


def _tokens(s: Settings) -> Iterator[tuple[str, Token]]:
    yield "client.token", s.client.token
    yield "client.subscription_token", s.client.subscription_token
    for i, issuer in enumerate(s.client.issuers):
        yield f"client.issuers[{i}]", issuer


def _secrets(s: Settings) -> Iterator[tuple[str, Secret]]:
    yield "sessions.secret_key", s.sessions.secret_key
    yield "auth.pepper", s.auth.pepper
    yield "http_api.key", s.http_api.key
    for i, key in enumerate(s.sessions.previous_secret_keys):
        yield f"sessions.previous_secret_keys[{i}]", key
    for i, pepper in enumerate(s.auth.previous_peppers):
        yield f"auth.previous_peppers[{i}]", pepper
    for path, token in _tokens(s):
        yield f"{path}.hmac_secret_key", token.hmac_secret_key
