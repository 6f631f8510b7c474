"""URLs of several hosts, on every Python that there is: newer ones refuse what older ones read."""

import pytest

from config.resp import Address
from config.settings import Settings, with_values
from config.urls import several


def test_an_ipv6_address_behind_another_host_was_no_url() -> None:
    found = several("postgresql://u:p%2C@a:1,[::1]:2/db?sslmode=require")
    assert found == ("postgresql://u:p%2C@", ["a:1", "[::1]:2"], "/db?sslmode=require")
    assert found.first == "postgresql://u:p%2C@a:1/db?sslmode=require"


@pytest.mark.parametrize("url", ["", "nothing", "unix:/run/x", "redis://", "redis:///3", "redis://u@h:1/3?a=b"])
def test_of_one_host_nothing_is_changed(url: str) -> None:
    found = several(url)
    assert len(found.hosts) == 1
    assert found.first == url


def test_a_sentinel_by_its_ipv6_address_behind_another() -> None:
    address = Address.parse("redis+sentinel://u:p@one:1,[::1]:2,three/4?sentinel_master_name=m")
    assert address.sentinels == (("one", 1), ("::1", 2), ("three", 26379))
    assert (address.username, address.password, address.db) == ("u", "p", 4)


def test_a_setting_may_name_an_ipv6_address_behind_another(settings: Settings) -> None:
    url = "postgresql://u:p@one:1,[::1]:2/db"
    assert with_values(settings, {"database.url": url}).database.url.get_secret_value() == url
