"""docs/settings.md has every setting with its type and default, and none that is not there."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from config.loading import load, options
from config.settings import Settings, seconds

DOCUMENT = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
# Tables of the same options are described once: below the first of these, which is as well in the other ones.
ALIKE = {
    "client.token": ("client.token", "client.subscription_token", "client.issuers"),
    "channel.without_namespace": ("channel.namespaces", "channel.without_namespace"),
}
TYPES = {
    'a duration like "30s", "10m", "1h30m" or "14d"': "duration",
    'a table of roles, each with its scopes, like support = ["users:read"]': "table",
    'an array, each item an address or a network like "10.0.0.0/8"': "array of networks",
    'an array, each item an exact origin like "https://example.org", or "*"': "array of origins",
    'an array, each item an exact origin like "https://example.org", or "android:apk-key-hash:..."': "array of origins",
    'a domain like "example.org" (no scheme, no port, lower case)': "domain",
    'an address like "Example <no-reply@example.org>"': "mail address",
    'a URL like "https://example.org/siteverify"': "URL",
    'a link like "https://example.org/reset#{token}"': "link with `{token}`",
    "an RSA public key in PEM, its first line -----BEGIN PUBLIC KEY-----": "public key",
    "an ECDSA public key in PEM, its first line -----BEGIN PUBLIC KEY-----": "public key",
}


def model_of(path: str) -> type[BaseModel]:
    """The model that declares the option at `path`."""
    model: type[BaseModel] = Settings
    for name in path.split(".")[:-1]:
        annotation = model.model_fields[name].annotation
        kinds = (annotation, *getattr(annotation, "__args__", ()))
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return model


def kind(path: str) -> str:
    accepted = options()[path].accepted
    if accepted.startswith("one of "):
        return " or ".join(f"`{name}`" for name in accepted.removeprefix("one of ").split(", "))
    if options()[path].secret:
        return "array of secrets" if accepted.startswith("an array") else "secret"
    if " of the form " in accepted:
        return f"text like `{accepted.partition(' of the form ')[2]}`"
    return TYPES.get(accepted, accepted)


def default(path: str) -> str:
    value = model_of(path).model_fields[path.rpartition(".")[2]].default
    if value is PydanticUndefined:
        return "none"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value in ("", []):
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"`{json.dumps(value)}`"
    return f"`{duration(value)}`" if kind(path) == "duration" else f"`{value}`"


def duration(value: float) -> str:
    """As a person would write it."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if value > size and value % size == 0:
            return f"{value / size:g}{unit}"
    return f"{value:g}s"


def row(path: str) -> str:
    """How the row of an option begins."""
    return f"| `{name_in_document(path)}` | {kind(path)} | {default(path)} | "


def name_in_document(path: str) -> str:
    table, _, name = path.rpartition(".")
    return name if any(table in tables for tables in ALIKE.values()) else path


def section(path: str) -> str:
    """The part of the document where the option stands."""
    table = path.rpartition(".")[0]
    title = next((first for first, tables in ALIKE.items() if table in tables), path.partition(".")[0])
    found = re.search(rf"^## {re.escape(title)}\b(?!\.).*?(?=^## |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert found, f"no section {title}"
    return found[0]


LEAVES = [
    path
    for path, option in options().items()
    if not option.table and path not in ("client.issuers", "channel.namespaces", "sessions.roles")
]


@pytest.mark.parametrize("path", LEAVES)
def test_every_setting_has_its_row(path: str) -> None:
    assert row(path) in section(path), f"{row(path)}... is missing in docs/settings.md"


def test_no_row_is_of_a_setting_that_is_gone() -> None:
    named = re.findall(r"^\| `([^`]+)` \|", DOCUMENT, re.MULTILINE)
    assert set(named) == {name_in_document(path) for path in LEAVES}
    assert len(named) == len({(section(path), name_in_document(path)) for path in LEAVES})


def test_the_example_is_accepted(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert example
    (tmp_path / "settings.toml").write_text(example[1])
    assert load(str(tmp_path / "settings.toml"), {}, dev=True).channel.namespaces[0].history_ttl == 300


def test_defaults_that_are_durations_can_be_written_as_they_stand() -> None:
    for path in LEAVES:
        if kind(path) == "duration":
            assert seconds(default(path).strip("`")) == model_of(path).model_fields[path.rpartition(".")[2]].default
