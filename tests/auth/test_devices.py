"""The cookie by which a browser is known again to an account that logged in there."""

from auth.devices import KNOWN_FOR, DeviceCookies
from config.clock import FakeClock

SECRET = b"a master secret of more than 32 bytes"


def test_a_device_is_known_to_the_account_that_logged_in_there_alone(clock: FakeClock) -> None:
    devices = DeviceCookies(SECRET, now=clock.wall)
    value = devices.make("a@example.org")
    assert devices.recognise("a@example.org", value)
    assert devices.recognise("b@example.org", value) == ""
    assert DeviceCookies(SECRET + b"x", now=clock.wall).recognise("a@example.org", value) == ""


def test_each_login_is_another_device_by_name(clock: FakeClock) -> None:
    devices = DeviceCookies(SECRET, now=clock.wall)
    names = {devices.recognise("a", devices.make("a")) for _ in range(100)}
    assert len(names) == 100


def test_no_other_spelling_of_a_value_is_known(clock: FakeClock) -> None:
    devices = DeviceCookies(SECRET, now=clock.wall)
    value = devices.make("a")
    for n in range(len(value)):
        other = value[:n] + ("A" if value[n] != "A" else "B") + value[n + 1 :]
        assert devices.recognise("a", other) == ""
    for other in ("", value + "=", value + "A", value[:-1], " " + value, "é", "x" * 100_000):
        assert devices.recognise("a", other) == ""


def test_a_device_is_forgotten_after_its_time_and_knows_previous_secrets(clock: FakeClock) -> None:
    value = DeviceCookies(SECRET, now=clock.wall).make("a")
    later = DeviceCookies(b"another secret of more than 32 bytes", [SECRET], now=clock.wall)
    clock.advance(KNOWN_FOR - 2)
    assert later.recognise("a", value)
    clock.advance(4)
    assert later.recognise("a", value) == ""


def test_a_device_is_trusted_by_the_account_in_the_state_in_which_a_factor_was_shown(clock: FakeClock) -> None:
    devices = DeviceCookies(SECRET, now=clock.wall)
    value = devices.make("a", "3 totp")
    assert devices.recognise("a", value)
    assert devices.trusts("a", value, "3 totp", 60)
    assert not devices.trusts("a", value, "4 totp", 60)
    assert not devices.trusts("b", value, "3 totp", 60)
    assert not devices.trusts("a", devices.make("a"), "3 totp", 60)
    assert not devices.trusts("a", devices.make("a"), "", 60)
    for n in range(len(value)):
        other = value[:n] + ("A" if value[n] != "A" else "B") + value[n + 1 :]
        assert not (devices.trusts("a", other, "3 totp", 60) and devices.recognise("a", other))
    clock.advance(59)
    assert devices.trusts("a", value, "3 totp", 60)
    clock.advance(3)
    assert not devices.trusts("a", value, "3 totp", 60)
    later = DeviceCookies(b"another secret of more than 32 bytes", [SECRET], now=clock.wall)
    assert later.trusts("a", value, "3 totp", 3600)
