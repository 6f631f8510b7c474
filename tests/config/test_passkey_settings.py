"""Whom passkeys are made for: what follows from the origins, what is set, and what is refused."""

from typing import Any

import pytest

from config import loading
from config.settings import Settings, unsafe, with_values

APP = "android:apk-key-hash:" + "a" * 43


def party(sites: list[str], **auth: Any) -> tuple[str, tuple[str, ...]] | None:
    values = {"client.allowed_origins": sites, **{f"auth.passkey_{name}": value for name, value in auth.items()}}
    return with_values(Settings(), values).relying_party


def test_the_first_origin_over_https_gives_the_domain_and_those_below_it_belong_to_it() -> None:
    assert party(
        ["https://a.example", "https://b.a.example:8443", "https://evila.example", "http://a.example", "*"]
    ) == (
        "a.example",
        ("https://a.example", "https://b.a.example:8443"),
    )
    local = "http://localhost:8000"
    assert party(["http://127.0.0.1:8000", local]) == ("localhost", (local,))
    assert party([local, "https://a.example"]) == ("a.example", ("https://a.example",))
    for none in ([], ["*"], ["https://192.0.2.1"], ["https://[2001:db8::1]"], ["http://a.example"]):
        assert party(none) is None


def test_a_domain_above_takes_in_all_its_sites_and_apps_are_named() -> None:
    sites = ["https://chat.example.org", "https://admin.example.org"]
    assert party(sites, rp_id="example.org") == ("example.org", tuple(sites))
    assert party(sites, origins=[sites[1], APP]) == ("admin.example.org", (sites[1], APP))
    assert party([], origins=[APP]) is None
    assert party([], origins=[APP], rp_id="example.org") == ("example.org", (APP,))


@pytest.mark.parametrize(
    ("origins", "auth", "why"),
    [
        (["https://a.example"], {"rp_id": "example"}, "nobody's own domain"),
        (["https://a.example"], {"rp_id": "b.example"}, "no origin over https belongs to it"),
        (["https://a.example"], {"rp_id": "a.example", "origins": ["https://b.example"]}, "does not belong"),
        (["https://a.example"], {"origins": ["http://a.example"]}, "need https"),
    ],
)
def test_what_cannot_work_or_is_too_wide_is_refused_outside_development(
    origins: list[str], auth: dict[str, Any], why: str
) -> None:
    values = {"client.allowed_origins": origins, **{f"auth.passkey_{name}": value for name, value in auth.items()}}
    assert why in " ".join(what for path, what in unsafe(with_values(Settings(), values)) if "passkey" in path)


@pytest.mark.parametrize(
    "domain", ["https://a.example", "a.example:443", "A.example", "192.0.2.1", "*.a.example", "-a.b"]
)
def test_what_is_no_domain_is_a_mistake(domain: str) -> None:
    with pytest.raises(loading.SettingsError, match=r"auth.passkey_rp_id.*a domain like"):
        loading.load(None, {"WARDGATE_AUTH_PASSKEY_RP_ID": domain}, dev=True)


@pytest.mark.parametrize("origin", ["*", "https://a.example/", "android:apk-key-hash:x", "a.example"])
def test_what_is_no_origin_of_passkeys_is_a_mistake(origin: str) -> None:
    with pytest.raises(loading.SettingsError, match=r"auth\.passkey_origins"):
        loading.load(None, {"WARDGATE_AUTH_PASSKEY_ORIGINS": f'["{origin}"]'}, dev=True)
