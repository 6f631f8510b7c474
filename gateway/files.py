"""The files and folders that settings name: looked at before anything starts, and by the command `check-config`.

What a setting may be is the affair of `config.settings`; what is in these files, of the room that reads them.
"""

import os
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from config.commands import DONE, USAGE, Config, Json, say, show
from config.errors import Failure
from config.loading import Mistake, SettingsError, load
from config.settings import Settings


def require(settings: Settings) -> None:
    """SettingsError with all that is wrong: now, and not when the first letter is to be sent or a password is set."""
    if mistakes := [*_mistakes(settings)]:
        raise SettingsError(mistakes)


def _mistakes(settings: Settings) -> Iterator[Mistake]:
    if settings.mail.templates:
        from auth import letters  # it takes long to load

        for mistake in dict.fromkeys(letters.check(settings.mail)):
            yield Mistake("mail.templates", "", mistake)
    if settings.auth.breached_passwords:
        from auth.breached import Breached

        try:
            Breached(settings.auth.breached_passwords).close()
        except Failure as error:
            yield Mistake("auth.breached_passwords", "", str(error))


def check_config(
    *,
    for_dev: Annotated[
        bool, Parameter(name="--dev", negative=(), help="Accept what is unsafe outside development.")
    ] = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Read the settings as `serve` would, and the files that they name, and say everything that is wrong with them."""
    try:
        settings = load(str(config) if config else None, os.environ, dev=for_dev)
        require(settings)
    except SettingsError as error:
        if json:
            show({"ok": False, "mistakes": error.mistakes}, as_json=True)
        else:
            say("\n".join(str(mistake) for mistake in error.mistakes))
        return USAGE
    if json:
        # A secret prints as asterisks, or as nothing where it is unset.
        effective: Any = msgspec.to_builtins(settings.model_dump(), enc_hook=str)
        show({"ok": True, "mistakes": [], "settings": effective}, as_json=True)
    else:
        print("The settings are fine.")
    return DONE
