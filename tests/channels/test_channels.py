"""What a channel name means and what a client may do there, by the rules of the field."""

from collections.abc import Mapping
from typing import Any

import pytest

from config.settings import Channel as ChannelSettings
from config.settings import ChannelOptions, Namespace, PersonalChannel
from config.settings import Client as ClientSettings
from gateway.channels import (
    BadChannel,
    Channels,
    UnknownChannel,
    grant,
    may_history,
    may_presence,
    may_publish,
    may_subscribe,
)
from gateway.protocol.codes import ErrorCode, ProtocolError
from gateway.protocol.commands import SubscribeRequest

DENIED, OFF = ErrorCode.PERMISSION_DENIED, ErrorCode.NOT_AVAILABLE
HISTORY: dict[str, Any] = {"history_size": 10, "history_ttl": "60s"}


def channels(*namespaces: Namespace, client: ClientSettings | None = None, **options: Any) -> Channels:
    own = {name: options.pop(name) for name in list(options) if name in ChannelSettings.model_fields}
    settings = ChannelSettings(without_namespace=ChannelOptions(**options), namespaces=list(namespaces), **own)
    return Channels(settings, client or ClientSettings())


# Names


@pytest.mark.parametrize(
    ("name", "namespace", "rest"),
    [
        ("news", "", "news"),
        ("chat:1", "chat", "1"),
        ("chat:1:2", "chat", "1:2"),
        ("$chat:1", "chat", "1"),
        ("$news", "", "$news"),
        ("chat:a#42", "chat", "a#42"),
        ("chat:", "chat", ""),
    ],
)
def test_a_name_says_its_namespace(name: str, namespace: str, rest: str) -> None:
    channel = channels(Namespace(name="chat", presence=True)).client(name)
    assert (channel.name, channel.namespace, channel.rest) == (name, namespace, rest)
    assert channel.options.presence is (namespace == "chat")
    assert channel.private is name.startswith("$")


@pytest.mark.parametrize("name", ["other:1", "$other:1", ":1", "cha:t", "CHAT:1", " chat:1"])
def test_25_an_unknown_namespace_is_102(name: str) -> None:
    for find in (channels(Namespace(name="chat")).client, channels(Namespace(name="chat")).server):
        with pytest.raises(UnknownChannel) as caught:
            find(name)
        assert caught.value.code == 102


def test_25_an_empty_name_breaks_the_protocol() -> None:
    with pytest.raises(ProtocolError) as caught:
        channels().client("")
    assert caught.value.code == 3501


def test_19_a_name_longer_than_255_bytes_is_107() -> None:
    known = channels()
    assert known.client("x" * 255)
    with pytest.raises(BadChannel) as caught:
        known.client("x" * 256)
    assert caught.value.code == 107
    with pytest.raises(BadChannel):
        channels(max_length=10).client("x" * 11)


def test_19_a_name_that_is_not_ascii_is_107_for_a_client() -> None:
    known = channels()
    with pytest.raises(BadChannel):
        known.client("caf\u00e9")
    assert known.server("caf\u00e9").name == "caf\u00e9"
    with pytest.raises(BadChannel):  # and stays so once the name is known
        known.client("caf\u00e9")


def test_length_is_counted_in_bytes() -> None:
    known = channels(channel_regex=".")
    assert known.client("\u00e9" * 127)
    with pytest.raises(BadChannel):
        known.client("\u00e9" * 128)


@pytest.mark.parametrize(
    ("rest", "good"),
    [("1", True), ("12", True), ("", False), ("a", False), ("1a", False), ("12\n", False), ("\u0661", False)],
)
def test_a_namespace_may_demand_a_pattern_of_the_rest(rest: str, good: bool) -> None:
    known = channels(Namespace(name="chat", channel_regex=r"^\d+$"))
    if good:
        assert known.client(f"chat:{rest}")
    else:
        with pytest.raises(BadChannel):
            known.client(f"chat:{rest}")
    assert known.server(f"chat:{rest}")


def test_a_pattern_lets_other_alphabets_in_and_matches_anywhere() -> None:
    assert channels(channel_regex="[a-z]+\u00e9").client("xx caf\u00e9 yy")


def test_a_pattern_that_cannot_be_matched_as_in_go_is_named() -> None:
    with pytest.raises(ValueError, match="channel_regex of 'chat'"):
        channels(Namespace(name="chat", channel_regex=r"(?u)\w"))


def test_boundaries_are_settings() -> None:
    known = channels(
        Namespace(name="chat", allow_user_limited_channels=True),
        private_prefix="!",
        namespace_boundary="/",
        user_boundary="@",
        user_separator=";",
    )
    channel = known.client("!chat/a@1;2")
    assert (channel.namespace, channel.private, channel.users) == ("chat", True, frozenset({"1", "2"}))
    assert known.client("$a:b#c").namespace == ""


def test_boundaries_may_be_off() -> None:
    known = channels(private_prefix="", namespace_boundary="", user_boundary="", user_separator="")
    channel = known.client("$a:b#c")
    assert (channel.namespace, channel.rest, channel.private, channel.users) == ("", "$a:b#c", False, None)
    assert channels(user_separator="").client("a#1,2").users == frozenset({"1,2"})


def test_the_personal_channel() -> None:
    assert channels().personal("42") == "#42"
    client = ClientSettings(subscribe_to_user_personal_channel=PersonalChannel(personal_channel_namespace="me"))
    assert channels(client=client).personal("42") == "me:#42"


def test_known_names_are_kept_but_not_without_bound() -> None:
    known = channels()
    assert known.client("a") is known.client("a")
    first = known.client("a")
    for number in range(5000):
        known.client(f"c{number}")
    assert len(known._cache) == 4096
    assert known.client("a") is not first


# History


def test_history_is_what_the_settings_say() -> None:
    channel = channels(**HISTORY).client("c")
    assert (channel.history, channel.history_size, channel.history_ttl) == (True, 10, 60.0)
    channel = channels().client("c")
    assert (channel.history, channel.history_size, channel.history_ttl) == (False, 0, 0.0)


def test_the_epoch_lives_as_long_as_the_settings_say() -> None:
    assert channels().client("c").history_meta_ttl == 30 * 86400
    chats = [Namespace(name="short", history_meta_ttl=3600.0), Namespace(name="usual")]
    known = Channels(ChannelSettings(namespaces=chats, history_meta_ttl=7200.0), ClientSettings())
    assert known.server("short:1").history_meta_ttl == 3600
    assert known.server("usual:1").history_meta_ttl == 7200


# Rights


@pytest.mark.parametrize(
    ("options", "name", "user", "error"),
    [
        ({}, "c", "42", DENIED),
        ({"allow_subscribe_for_client": True}, "c", "42", None),
        ({"allow_subscribe_for_client": True}, "c", "", DENIED),
        ({"allow_subscribe_for_anonymous": True}, "c", "", DENIED),
        ({"allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True}, "c", "", None),
        ({"allow_subscribe_for_client": True}, "$c", "42", DENIED),
        ({"allow_user_limited_channels": True}, "a#45,46", "45", None),
        ({"allow_user_limited_channels": True}, "a#45,46", "46", None),
        ({"allow_user_limited_channels": True}, "a#45,46", "4", DENIED),
        ({"allow_user_limited_channels": True}, "a#45,46", "45,46", DENIED),
        ({"allow_user_limited_channels": True}, "a#45,46", "", DENIED),
        ({"allow_user_limited_channels": True}, "a#", "", DENIED),
        ({"allow_user_limited_channels": True}, "a#45#46", "45", DENIED),
        ({"allow_user_limited_channels": True}, "a#45#46", "46", None),
        ({"allow_user_limited_channels": True}, "$a#46", "46", DENIED),
        ({"allow_user_limited_channels": True, "allow_subscribe_for_client": True}, "a#46", "45", DENIED),
        ({"allow_subscribe_for_client": True}, "a#46", "46", DENIED),
    ],
)
def test_25_who_may_subscribe(options: dict[str, Any], name: str, user: str, error: ErrorCode | None) -> None:
    assert may_subscribe(channels(**options).client(name), user) is error


def test_insecure_lets_everyone_in_but_not_into_private_channels() -> None:
    known = channels(client=ClientSettings(insecure=True), presence=True, **HISTORY)
    for name in ("c", "a#45"):
        assert may_subscribe(known.client(name), "") is None
    assert may_subscribe(known.client("$c"), "") is DENIED
    channel = known.client("c")
    assert may_publish(channel, "", False) is None
    assert may_presence(channel, "", False) is None
    assert may_history(channel, "", False) is None


RIGHTS = {"publish": may_publish, "presence": may_presence, "history": may_history}


@pytest.mark.parametrize("right", RIGHTS)
@pytest.mark.parametrize(
    ("allowed", "user", "subscribed", "good"),
    [
        ((), "42", True, False),
        (("client",), "42", False, True),
        (("client",), "", False, False),
        (("client", "anonymous"), "", False, True),
        (("subscriber",), "42", True, True),
        (("subscriber",), "42", False, False),
        (("subscriber",), "", True, False),
        (("subscriber", "anonymous"), "", True, True),
        (("subscriber", "anonymous"), "", False, False),
        (("anonymous",), "", True, False),
        (("anonymous",), "42", True, False),
    ],
)
def test_who_may(right: str, allowed: tuple[str, ...], user: str, subscribed: bool, good: bool) -> None:
    options: dict[str, Any] = {f"allow_{right}_for_{who}": True for who in allowed}
    channel = channels(presence=True, **HISTORY, **options).client("c")
    assert RIGHTS[right](channel, user, subscribed) is (None if good else DENIED)


def test_38_42_off_is_said_before_rights_are_looked_at() -> None:
    channel = channels().client("c")
    assert may_presence(channel, "42", True) is OFF
    assert may_history(channel, "42", True) is OFF


@pytest.mark.parametrize(
    ("name", "user", "good"),
    [
        ("chat:1", "42", True),
        ("vault:1", "42", False),
        ("chat:1", "", False),
        ("$chat:1", "42", False),
        ("closed:1", "42", False),
        ("chat:\u00e9", "42", False),
    ],
)
def test_15_channels_of_a_connect_command_are_joined_with_the_right_else_left_out(
    name: str, user: str, good: bool
) -> None:
    known = channels(
        Namespace(name="chat", allow_subscribe_for_client=True),
        Namespace(name="vault", allow_subscribe_for_client=True, min_aal=2),
        Namespace(name="closed"),
    )
    assert (known.joinable(name, user) is not None) is good
    assert (known.joinable(name, user, 2) is not None) is (good or name == "vault:1")


def test_15_an_unknown_namespace_in_a_connect_command_breaks_the_protocol() -> None:
    with pytest.raises(ProtocolError):
        channels().joinable("other:1", "42")


# What a subscription gets

ASKS = SubscribeRequest("c", positioned=True, recoverable=True, join_leave=True)
PLAIN = SubscribeRequest("c")


def given(
    request: SubscribeRequest, user: str = "42", override: Mapping[str, bool | None] | None = None, **options: Any
) -> set[str]:
    found = grant(channels(**options).client("c"), user, request, override)
    names = ("presence", "join_leave", "push_join_leave", "positioned", "recoverable")
    return {name for name in names if getattr(found, name)}


def test_24_what_is_not_allowed_is_silently_not_granted() -> None:
    assert given(ASKS) == set()
    assert given(ASKS, **HISTORY) == set()
    assert given(PLAIN, allow_recovery=True, allow_positioning=True, **HISTORY) == set()


@pytest.mark.parametrize(
    ("request_", "options", "granted"),
    [
        (PLAIN, {"force_recovery": True}, {"positioned", "recoverable"}),
        (PLAIN, {"force_positioning": True}, {"positioned"}),
        (ASKS, {"allow_recovery": True}, {"positioned", "recoverable"}),
        (ASKS, {"allow_positioning": True}, {"positioned"}),
        (ASKS, {"allow_history_for_subscriber": True}, {"positioned", "recoverable"}),
        (ASKS, {"allow_history_for_client": True}, {"positioned", "recoverable"}),
        (SubscribeRequest("c", positioned=True), {"allow_history_for_subscriber": True}, {"positioned"}),
        (SubscribeRequest("c", recoverable=True), {"allow_recovery": True}, {"positioned", "recoverable"}),
    ],
)
def test_recovery_and_positioning(request_: SubscribeRequest, options: dict[str, Any], granted: set[str]) -> None:
    assert given(request_, **options, **HISTORY) == granted


def test_positions_stand_on_history() -> None:
    allowed: dict[str, Any] = {"allow_recovery": True, "allow_positioning": True, "allow_history_for_client": True}
    assert given(ASKS, **allowed) == set()
    assert given(ASKS, override={"force_recovery": True, "force_positioning": True}) == set()


@pytest.mark.parametrize(
    ("request_", "options", "granted"),
    [
        (PLAIN, {"presence": True}, {"presence"}),
        (PLAIN, {"join_leave": True}, {"join_leave"}),
        (PLAIN, {"join_leave": True, "force_push_join_leave": True}, {"join_leave", "push_join_leave"}),
        (PLAIN, {"force_push_join_leave": True}, {"push_join_leave"}),
        (ASKS, {"join_leave": True}, {"join_leave"}),
        (ASKS, {"join_leave": True, "allow_presence_for_subscriber": True}, {"join_leave", "push_join_leave"}),
        (ASKS, {"allow_presence_for_subscriber": True}, set()),
        (PLAIN, {"join_leave": True, "allow_presence_for_subscriber": True}, {"join_leave"}),
    ],
)
def test_presence_join_and_leave(request_: SubscribeRequest, options: dict[str, Any], granted: set[str]) -> None:
    assert given(request_, **options) == granted


def test_a_token_or_a_backend_may_set_options_of_its_own() -> None:
    on = {"presence": True, "join_leave": True, "force_push_join_leave": True, "force_recovery": True}
    assert given(PLAIN, override=on, **HISTORY) == {
        "presence",
        "join_leave",
        "push_join_leave",
        "positioned",
        "recoverable",
    }
    off = dict.fromkeys([*on, "force_positioning"], False)
    forced: dict[str, Any] = dict.fromkeys(off, True)
    assert given(PLAIN, override=off, **forced, **HISTORY) == set()
    assert given(PLAIN, override={"force_positioning": True, "presence": None}, presence=True, **HISTORY) == {
        "presence",
        "positioned",
    }


def test_anonymous_clients_ask_for_what_anonymous_clients_may() -> None:
    assert given(ASKS, user="", allow_history_for_subscriber=True, **HISTORY) == set()
    assert given(ASKS, user="", allow_history_for_subscriber=True, allow_history_for_anonymous=True, **HISTORY) == {
        "positioned",
        "recoverable",
    }
