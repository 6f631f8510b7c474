"""What a client may do next: decisions alone, no sockets, no clock."""

from typing import Any

import pytest

from config.settings import Channel
from config.settings import Client as Settings
from gateway.channels import Channels
from gateway.client import (
    ASK_AGAIN,
    DUE_ABSOLUTE,
    DUE_CLOSE,
    DUE_IDLE,
    DUE_SESSION,
    DUE_SUBSCRIPTION,
    DUE_WARN,
    PENDING,
    Call,
    Client,
    Connect,
    CountPresence,
    Flag,
    Message,
    Phase,
    Publish,
    ReadHistory,
    ReadPresence,
    Refresh,
    SubRefresh,
    Subscribe,
    Subscription,
    Unsubscribe,
    check_subscription_token,
)
from gateway.deadlines import NEVER
from gateway.protocol.codes import Disconnect, Refused
from gateway.protocol.commands import (
    PONG,
    Command,
    ConnectRequest,
    FilterNode,
    HistoryRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    Request,
    RpcRequest,
    SendRequest,
    SubRefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
)
from sessions.model import Position, Standing

SETTINGS = Settings(channel_limit=3, history_max_publication_limit=50)
CHANNELS = Channels(
    Channel.model_validate(
        {
            "without_namespace": {"allow_subscribe_for_client": True},
            "namespaces": [
                {
                    "name": "chat",
                    "allow_subscribe_for_client": True,
                    "allow_publish_for_subscriber": True,
                    "allow_presence_for_subscriber": True,
                    "allow_history_for_subscriber": True,
                    "presence": True,
                    "history_size": 10,
                    "history_ttl": "60s",
                },
                {"name": "closed"},
                {"name": "mine", "allow_user_limited_channels": True},
            ],
        }
    ),
    SETTINGS,
)
HERE = Position(5, "e" * 32)


def client(phase: Phase = Phase.LIVE, **standing: Any) -> Client:
    made = Client("c1", address="10.0.0.1", handshake=None, stale_at=10.0)
    if phase is Phase.LIVE:
        made.become(Standing(**{**STANDING, **standing}), 100.0, 1_000_000.0, SETTINGS)
    made.phase = phase
    return made


STANDING: dict[str, Any] = {"sid": "s1", "user": "42", "born": 3, "position": HERE, "kind": "token"}


def subscribed(to: str, *flags: int, expires_at: float = NEVER) -> Client:
    made = client()
    made.subs = {to: Subscription(made, to, sum(flags), b"", expires_at)}
    return made


def decide(made: Client, request: Request | None, id: int = 1) -> Any:
    return made.decide(Command(id, request), SETTINGS, CHANNELS)


def refusal(made: Client, request: Request) -> int:
    with pytest.raises(Refused) as caught:
        decide(made, request)
    return caught.value.code


def end(made: Client, request: Request) -> int:
    with pytest.raises(Disconnect) as caught:
        decide(made, request)
    return caught.value.code


def test_nothing_goes_before_connect_and_connect_goes_once() -> None:
    fresh = client(Phase.NEW)
    assert end(fresh, SubscribeRequest(channel="a")) == 3501
    assert isinstance(decide(fresh, ConnectRequest()), Connect)
    assert fresh.phase is Phase.CONNECTING
    assert end(fresh, ConnectRequest()) == 3501
    assert end(client(), ConnectRequest()) == 3501


def test_after_a_refused_connect_nothing_is_answered() -> None:
    assert decide(client(Phase.REFUSED), SubscribeRequest(channel="a")) is None
    assert decide(client(Phase.REFUSED), ConnectRequest()) is None


def test_subscribe() -> None:
    effect = decide(client(), SubscribeRequest(channel="chat:a"))
    assert isinstance(effect, Subscribe)
    assert effect.channel.history
    assert refusal(subscribed("chat:a"), SubscribeRequest(channel="chat:a")) == 105
    assert refusal(client(), SubscribeRequest(channel="nowhere:a")) == 102
    assert refusal(client(), SubscribeRequest(channel="closed:a")) == 103
    assert refusal(client(), SubscribeRequest(channel="$secret")) == 103
    assert refusal(client(), SubscribeRequest(channel="a" * 256)) == 107
    assert refusal(client(), SubscribeRequest(channel="ä")) == 107
    assert refusal(client(), SubscribeRequest(channel="a", type=1)) == 108
    assert refusal(client(), SubscribeRequest(channel="a", tf=FilterNode())) == 107
    assert isinstance(decide(client(), SubscribeRequest(channel="mine:a#42,43")), Subscribe)
    assert refusal(client(), SubscribeRequest(channel="mine:a#43")) == 103


def test_a_token_decides_alone_whether_a_subscription_is_allowed() -> None:
    assert isinstance(decide(client(), SubscribeRequest(channel="closed:a", token="t")), Subscribe)
    assert isinstance(decide(client(), SubscribeRequest(channel="$a", token="t")), Subscribe)


def test_the_limit_of_channels_is_an_error() -> None:
    made = client()
    made.subs = {name: Subscription(made, name, 0) for name in "abc"}
    assert refusal(made, SubscribeRequest(channel="d")) == 106


def test_unsubscribing_from_nothing_is_fine() -> None:
    effect = decide(client(), UnsubscribeRequest(channel="a"))
    assert isinstance(effect, Unsubscribe)
    assert effect.sub is None
    made = subscribed("a")
    assert decide(made, UnsubscribeRequest(channel="a")).sub is made.subs["a"]


def test_publish_needs_data_and_the_right() -> None:
    assert refusal(subscribed("chat:a"), PublishRequest(channel="chat:a")) == 107
    assert refusal(client(), PublishRequest(channel="chat:a", data=b"1")) == 103
    assert refusal(client(), PublishRequest(channel="nowhere:a", data=b"1")) == 102
    assert refusal(subscribed("chat:a"), PublishRequest(channel="chat:a", data=b"1", type=1)) == 108
    effect = decide(subscribed("chat:a"), PublishRequest(channel="chat:a", data=b"1"))
    assert isinstance(effect, Publish)
    assert effect.echo
    assert (effect.info.user, effect.info.client) == ("42", "c1")


def test_presence_and_history_say_off_before_no() -> None:
    assert refusal(client(), PresenceRequest(channel="a")) == 108
    assert refusal(client(), PresenceStatsRequest(channel="a")) == 108
    assert refusal(client(), HistoryRequest(channel="a")) == 108
    assert refusal(client(), PresenceRequest(channel="chat:a")) == 103
    assert refusal(client(), HistoryRequest(channel="chat:a")) == 103
    made = subscribed("chat:a")
    assert isinstance(decide(made, PresenceRequest(channel="chat:a")), ReadPresence)
    assert isinstance(decide(made, PresenceStatsRequest(channel="chat:a")), CountPresence)


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (5, 5), (-1, 50), (500, 50)])
def test_a_history_is_as_long_as_the_settings_allow(asked: int, given: int) -> None:
    effect = decide(subscribed("chat:a"), HistoryRequest(channel="chat:a", limit=asked))
    assert isinstance(effect, ReadHistory)
    assert effect.limit == given


def test_refreshes() -> None:
    assert isinstance(decide(client(), RefreshRequest(token="t")), Refresh)
    assert end(client(), RefreshRequest()) == 3501
    assert refusal(client(), SubRefreshRequest(channel="a", token="t")) == 103
    assert refusal(subscribed("a"), SubRefreshRequest(channel="a")) == 107
    assert isinstance(decide(subscribed("a"), SubRefreshRequest(channel="a", token="t")), SubRefresh)


def test_rpc_and_send_are_the_drivers_to_answer() -> None:
    call = decide(client(), RpcRequest(method="m", data=b"1"))
    assert isinstance(call, Call)
    assert (call.method, call.data) == ("m", b"1")
    assert isinstance(decide(client(), SendRequest(data=b"1"), 0), Message)


def test_a_subscription_token_for_something_else_ends_the_connection() -> None:
    made = client()
    check_subscription_token(made, "a", "a", "42", "")
    check_subscription_token(made, "a", "a", "42", "c1")
    for channel, user, holder in (("b", "42", ""), ("a", "43", ""), ("a", "42", "c2")):
        with pytest.raises(Disconnect) as caught:
            check_subscription_token(made, "a", channel, user, holder)
        assert caught.value.code == 3500


# -- commands in order


def test_commands_wait_in_order_and_pongs_do_not_wait() -> None:
    made = client()
    made.pings = 1
    one, two = Command(1, PresenceRequest(channel="a")), Command(2, PresenceRequest(channel="b"))
    assert made.receive([one, PONG, two], 0.0, 500) == []
    assert made.pings == 0
    assert made.next() is one
    assert made.next() is two
    assert made.next() is None
    assert made.queue is None


def test_a_pong_that_no_ping_asked_for_ends_it() -> None:
    made = client()
    with pytest.raises(Disconnect) as caught:
        made.receive([PONG], 0.0, 500)
    assert caught.value.code == 3501
    made.pings = 1
    with pytest.raises(Disconnect):
        made.receive([PONG, PONG], 0.0, 500)


def test_too_many_commands_a_second_are_refused_and_far_too_many_end_it() -> None:
    made = client()
    commands = [Command(n + 1, PresenceRequest(channel="a")) for n in range(15)]
    refused = made.receive(commands, 0.0, 10)
    assert [command.id for command in refused] == [11, 12, 13, 14, 15]
    assert made.receive(commands[:5], 1.5, 10) == []
    with pytest.raises(Disconnect) as caught:
        made.receive(commands * 2, 1.6, 10)
    assert caught.value.code == 3013


def test_reading_pauses_when_many_commands_wait_and_goes_on_at_half() -> None:
    made = client()
    made.receive([Command(n + 1, PresenceRequest(channel="a")) for n in range(PENDING + 1)], 0.0, 10_000)
    states = []
    while made.queue:
        states.append((len(made.queue), made.crowded, made.roomy))
        made.next()
    assert [size for size, crowded, _ in states if crowded] == [PENDING + 1]
    assert max(size for size, _, roomy in states if roomy) == PENDING // 2


# -- time


def test_a_token_ends_the_connection_after_the_delay() -> None:
    made = client(token_expires_at=1_000_060.0)
    made.ends_at = 1e9
    assert made.next_deadline() == 100 + 60 + SETTINGS.expired_close_delay
    assert made.due(160.0 + SETTINGS.expired_close_delay - 0.1) == []
    (due,) = made.due(160.0 + SETTINGS.expired_close_delay)
    assert due.kind == DUE_CLOSE
    assert due.close is not None
    assert due.close.code == 3005


def test_when_a_token_is_over_its_session_is_asked_for_once_in_a_while() -> None:
    made = client(token_expires_at=1_000_060.0)
    assert made.next_deadline() == 160.0
    assert [due.kind for due in made.due(160.0)] == [DUE_SESSION]
    assert made.next_deadline() == 160.0 + ASK_AGAIN
    made.ends_at = 500.0
    assert made.next_deadline() == 160.0 + SETTINGS.expired_close_delay


def test_a_life_is_cut_at_a_year() -> None:
    made = client(token_expires_at=1_000_000.0 + 4000 * 86400)
    assert made.expires_at == 100.0 + 365 * 86400 + SETTINGS.expired_close_delay


def test_the_absolute_end_is_announced_a_minute_ahead() -> None:
    made = client(kind="cookie", expires_at=1_000_300.0)
    assert made.next_deadline() == 340.0
    assert [due.kind for due in made.due(340.0)] == [DUE_WARN]
    assert made.next_deadline() == 400.0
    assert made.due(341.0) == []
    assert [due.kind for due in made.due(400.0)] == [DUE_ABSOLUTE]


def test_idleness_is_asked_for_a_minute_ahead_and_activity_puts_it_off() -> None:
    made = client(kind="cookie", idle=600.0)
    assert made.next_deadline() == 640.0
    made.seen(400.0)
    assert made.due(640.0) == []
    assert made.next_deadline() == 940.0
    assert [due.kind for due in made.due(940.0)] == [DUE_IDLE]
    assert made.next_deadline() == 940.0 + ASK_AGAIN


def test_a_connection_that_says_nothing_is_stale() -> None:
    fresh = client(Phase.NEW)
    assert fresh.next_deadline() == 10.0
    (due,) = fresh.due(10.0)
    assert due.close is not None
    assert due.close.code == 3502
    refused = client(Phase.REFUSED)
    assert refused.due(10.0)[0].close == due.close


def test_a_subscription_ends_alone_unless_the_server_made_it() -> None:
    made = subscribed("a", expires_at=150.0)
    assert made.next_deadline() == 150.0
    (due,) = made.due(150.0)
    assert (due.kind, due.sub) == (DUE_SUBSCRIPTION, made.subs["a"])
    (due,) = subscribed("a", Flag.SERVER, expires_at=150.0).due(150.0)
    assert due.close is not None
    assert due.close.code == 3006


def test_10c_after_a_thaw_everything_waits_for_the_grace() -> None:
    made = client(token_expires_at=1_000_060.0)
    made.grace = 500.0
    assert made.next_deadline() == 500.0
    assert made.due(499.0) == []
    assert made.due(500.0) != []


# -- identity


def test_9c_a_refresh_stays_in_its_session() -> None:
    made = client()
    same = Standing(**STANDING)
    assert made.follows(same)
    assert not made.follows(Standing(**{**STANDING, "sid": "s2"}))
    assert not made.follows(Standing(**{**STANDING, "user": "43"}))
    assert not made.follows(Standing(**{**STANDING, "issuer": "other"}))


def test_9c_an_external_token_without_a_sid_of_its_own_may_move_the_connection() -> None:
    made = client(kind="external", own_sid=False)
    new = {**STANDING, "kind": "external", "sid": "s2"}
    assert made.follows(Standing(**new, own_sid=False))
    assert not made.follows(Standing(**new, own_sid=True))
    assert not made.follows(Standing(**{**new, "kind": "token"}, own_sid=False))


def test_becoming_another_session_forgets_the_end_of_the_one_before() -> None:
    made = client(kind="external", own_sid=False, expires_at=1_000_300.0)
    made.warned = True
    made.become(Standing(**{**STANDING, "kind": "external", "sid": "s2"}), 100.0, 1_000_000.0, SETTINGS)
    assert made.ends_at == NEVER
    assert not made.warned
    assert made.sid == "s2"
