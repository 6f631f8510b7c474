"""Names of devices and places, for people."""

import pytest

from sessions.devices import device_name, place

_CHROME = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 Safari/537.36"


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0", "Firefox on Linux"),
        (f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_CHROME} Edg/128.0", "Edge on Windows"),
        (f"Mozilla/5.0 (Linux; Android 14) {_CHROME}", "Chrome on Android"),
        (f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_CHROME}", "Chrome on macOS"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) Version/17.0 Safari/604.1", "Safari on iPhone"),
        ("Mozilla/5.0 Firefox/128.0", "Firefox"),
        ("curl/8.1.2", "curl"),
        ("MyGame/1.2 (iPhone; iOS 17)", "MyGame on iPhone"),
        ("Mozilla/5.0 (X11; Linux)", "Linux"),
        ("Mozilla/5.0", ""),
        ("<script>alert(1)</script>", ""),
        ("", ""),
    ],
)
def test_a_user_agent_becomes_a_name(agent: str, name: str) -> None:
    assert device_name(agent) == name


def test_a_very_long_agent_has_a_short_name() -> None:
    assert len(device_name("A" * 10_000)) == 40


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3::9", "2001:db8:1::/48"),
        ("", ""),
        ("unix:", ""),
    ],
)
def test_a_place_is_a_network_and_never_an_address(address: str, network: str) -> None:
    assert place(address) == network
