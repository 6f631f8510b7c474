"""Channels: what a name means, which options it has, and what a client may do there. Pure.

A name is `[$][namespace:]rest[#user,user]`. Options come from the settings, with Centrifugo v6's names and meanings.
Whether a client is subscribed is an argument; whether a token is good is decided elsewhere. The functions that decide
return None for yes, or the error of the reply.

    Refused                  (gateway.protocol.codes)
    ├── UnknownChannel       102: its namespace is not configured
    ├── BadChannel           107: too long, or a name that the namespace does not allow
    └── LowAssurance         103: the session has not shown the factors that the channel demands
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from config.settings import Channel as ChannelSettings
from config.settings import ChannelOptions
from config.settings import Client as ClientSettings
from gateway.protocol.codes import ErrorCode, ProtocolError, Refused
from gateway.protocol.commands import SubscribeRequest

_CACHE_SIZE = 4096


class UnknownChannel(Refused):
    def __init__(self) -> None:
        super().__init__(ErrorCode.UNKNOWN_CHANNEL)


class BadChannel(Refused):
    def __init__(self) -> None:
        super().__init__(ErrorCode.BAD_REQUEST)


class LowAssurance(Refused):
    def __init__(self, channel: "Channel") -> None:
        super().__init__(ErrorCode.PERMISSION_DENIED)
        self.channel = channel


@dataclass(frozen=True, slots=True)
class Channel:
    """A name and what follows from it.

    `rest` is what `channel_regex` is matched with. `users` are those that a user-limited name lists, None for any other
    name. `private` needs a subscription token. `history_size` is 0 unless both size and TTL are set. `well_named` is
    what only clients are held to.
    """

    name: str
    namespace: str
    rest: str
    options: ChannelOptions
    private: bool
    users: frozenset[str] | None
    well_named: bool
    history_size: int
    history_ttl: float
    history_meta_ttl: float
    insecure: bool

    @property
    def history(self) -> bool:
        return self.history_size > 0


@dataclass(frozen=True, slots=True)
class Grant:
    """What one subscription gets. `recoverable` implies `positioned`, and both need history.

    `presence`: is listed. `join_leave`: its joining and leaving is told to others. `push_join_leave`: hears of others'.
    """

    presence: bool
    join_leave: bool
    push_join_leave: bool
    positioned: bool
    recoverable: bool


class Channels:
    """All channels, by the settings. ValueError for a `channel_regex` that does not compile."""

    def __init__(self, channel: ChannelSettings, client: ClientSettings) -> None:
        self._settings = channel
        self._client = client
        self._options = {"": channel.without_namespace, **{n.name: n for n in channel.namespaces}}
        self._patterns = {name: _pattern(name, o.channel_regex) for name, o in self._options.items() if o.channel_regex}
        self._cache: dict[str, Channel] = {}

    def client(self, name: str) -> Channel:
        """The channel that a client names: ProtocolError for "", UnknownChannel, BadChannel."""
        channel = self._cache.get(name) or self.server(name)
        if not channel.well_named:
            raise BadChannel
        return channel

    def server(self, name: str) -> Channel:
        """The channel that a backend or the server itself names: any characters, any regex."""
        found = self._cache.get(name)
        if found is None:
            found = self._resolve(name)
            if len(self._cache) >= _CACHE_SIZE:
                del self._cache[next(iter(self._cache))]
            self._cache[name] = found
        return found

    def joinable(self, name: str, user: str, aal: int = 1) -> Channel | None:
        """A server-side channel that a connect command asks for: None without the right, ProtocolError if unknown."""
        try:
            channel = self.client(name)
        except UnknownChannel:
            raise ProtocolError("unknown channel in subs") from None
        except BadChannel:
            return None
        return channel if may_subscribe(channel, user) is None and assured(channel, aal) else None

    def personal(self, user: str) -> str:
        """The name of a user's own channel."""
        namespace = self._client.subscribe_to_user_personal_channel.personal_channel_namespace
        prefix = namespace + self._settings.namespace_boundary if namespace else ""
        return f"{prefix}{self._settings.user_boundary}{user}"

    def _resolve(self, name: str) -> Channel:
        if not name:
            raise ProtocolError("no channel")
        if len(name.encode()) > self._settings.max_length:
            raise BadChannel
        namespace, rest, private = self._split(name)
        options = self._options.get(namespace)
        if options is None:
            raise UnknownChannel
        history = options.history_size > 0 and options.history_ttl > 0
        return Channel(
            name=name,
            namespace=namespace,
            rest=rest,
            options=options,
            private=private,
            users=self._users(name),
            well_named=self._well_named(namespace, rest, name),
            history_size=options.history_size if history else 0,
            history_ttl=options.history_ttl if history else 0.0,
            history_meta_ttl=options.history_meta_ttl or self._settings.history_meta_ttl,
            insecure=self._client.insecure,
        )

    def _split(self, name: str) -> tuple[str, str, bool]:
        prefix, boundary = self._settings.private_prefix, self._settings.namespace_boundary
        private = bool(prefix) and name.startswith(prefix)
        bare = name[len(prefix) :] if private else name
        if boundary and boundary in bare:
            namespace, _, rest = bare.partition(boundary)
            if not namespace:
                raise UnknownChannel
            return namespace, rest, private
        return "", name, private

    def _users(self, name: str) -> frozenset[str] | None:
        boundary, separator = self._settings.user_boundary, self._settings.user_separator
        if not boundary or boundary not in name:
            return None
        listed = name.rpartition(boundary)[2]
        return frozenset(listed.split(separator) if separator else [listed])

    def _well_named(self, namespace: str, rest: str, name: str) -> bool:
        pattern = self._patterns.get(namespace)
        if pattern is None:
            return name.isascii()
        # Python's `$` matches before a last newline too, the reference's does not.
        return not rest.endswith("\n") and pattern.search(rest) is not None


def _pattern(namespace: str, regex: str) -> re.Pattern[str]:
    """As in Go, `\\d` and `\\w` are ASCII and a match may be anywhere."""
    try:
        return re.compile(regex, re.ASCII)
    except (re.error, ValueError) as error:
        raise ValueError(f"channel_regex of {namespace or 'without_namespace'!r}: {error}") from None


def assured(channel: Channel, aal: int) -> bool:
    """Whether a session with this assurance may have anything to do with the channel, whatever a token says of it."""
    return aal >= channel.options.min_aal or channel.insecure


def may_subscribe(channel: Channel, user: str) -> ErrorCode | None:
    """Without a subscription token; a good token alone decides and skips this."""
    options = channel.options
    if channel.private:
        return ErrorCode.PERMISSION_DENIED
    if channel.insecure:
        return None
    if channel.users is not None:
        allowed = options.allow_user_limited_channels and user != "" and user in channel.users
    else:
        allowed = options.allow_subscribe_for_client and (user != "" or options.allow_subscribe_for_anonymous)
    return None if allowed else ErrorCode.PERMISSION_DENIED


def may_publish(channel: Channel, user: str, subscribed: bool) -> ErrorCode | None:
    options = channel.options
    allowed = _allowed(
        channel,
        user,
        subscribed,
        options.allow_publish_for_client,
        options.allow_publish_for_subscriber,
        options.allow_publish_for_anonymous,
    )
    return None if allowed else ErrorCode.PERMISSION_DENIED


def may_presence(channel: Channel, user: str, subscribed: bool) -> ErrorCode | None:
    """Off is said before rights are looked at."""
    if not channel.options.presence:
        return ErrorCode.NOT_AVAILABLE
    return None if _presence(channel, user, subscribed) else ErrorCode.PERMISSION_DENIED


def may_history(channel: Channel, user: str, subscribed: bool) -> ErrorCode | None:
    """Off is said before rights are looked at."""
    if not channel.history:
        return ErrorCode.NOT_AVAILABLE
    return None if _history(channel, user, subscribed) else ErrorCode.PERMISSION_DENIED


def grant(
    channel: Channel, user: str, request: SubscribeRequest, override: Mapping[str, bool | None] | None = None
) -> Grant:
    """What a subscription that is allowed gets: what the settings force, and what it asked for and may have.

    What it may not have is left out silently. `override` are the options that a token or the server API sets:
    presence, join_leave, force_push_join_leave, force_positioning, force_recovery. None is not set.
    """
    options = channel.options
    own = {name: value for name, value in (override or {}).items() if value is not None}
    join_leave = own.get("join_leave", options.join_leave)
    push = own.get("force_push_join_leave", options.force_push_join_leave)
    positioned = own.get("force_positioning", options.force_positioning)
    recoverable = own.get("force_recovery", options.force_recovery)
    if request.join_leave and join_leave:
        push = push or _presence(channel, user, True)
    if request.positioned:
        positioned = positioned or options.allow_positioning or _history(channel, user, True)
    if request.recoverable:
        recoverable = recoverable or options.allow_recovery or _history(channel, user, True)
    return Grant(
        presence=own.get("presence", options.presence),
        join_leave=join_leave,
        push_join_leave=push,
        positioned=channel.history and (positioned or recoverable),
        recoverable=channel.history and recoverable,
    )


def _presence(channel: Channel, user: str, subscribed: bool) -> bool:
    options = channel.options
    return _allowed(
        channel,
        user,
        subscribed,
        options.allow_presence_for_client,
        options.allow_presence_for_subscriber,
        options.allow_presence_for_anonymous,
    )


def _history(channel: Channel, user: str, subscribed: bool) -> bool:
    options = channel.options
    return _allowed(
        channel,
        user,
        subscribed,
        options.allow_history_for_client,
        options.allow_history_for_subscriber,
        options.allow_history_for_anonymous,
    )


def _allowed(channel: Channel, user: str, subscribed: bool, client: bool, subscriber: bool, anonymous: bool) -> bool:
    """The rule that publish, presence and history share; `client.insecure` allows all."""
    if channel.insecure:
        return True
    return (client or (subscriber and subscribed)) and (user != "" or anonymous)
