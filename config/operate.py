"""The command `migrate`."""

import os
from typing import Annotated

from cyclopts import Parameter

from config import dev
from config import migrate as migrations
from config.commands import COMMON, DONE, Common, need, postgres_there, show
from config.loading import load
from config.settings import Database, with_values


async def migrate(
    *,
    status: Annotated[bool, Parameter(negative=(), help="List every migration and its state; change nothing.")] = False,
    dry_run: Annotated[bool, Parameter(negative=(), help="Say what would be applied; change nothing.")] = False,
    common: Common = COMMON,
) -> int:
    """Apply the migrations that the database does not have yet. Safe to run from several machines at once."""
    database = _database_of(common)
    await postgres_there(database)
    if status:
        show(await migrations.status(database), as_json=common.json)
        return DONE
    applied = await migrations.apply(database, dry_run=dry_run)
    if common.json:
        show({"applied": [] if dry_run else applied, "pending": applied if dry_run else []}, as_json=True)
    elif not applied:
        print("Nothing to do: the database is up to date.")
    else:
        print("Would apply:" if dry_run else "Applied:")
        show(applied, as_json=False, columns=["number", "name"] if dry_run else ["number", "name", "took_ms"])
    return DONE


def _database_of(common: Common) -> Database:
    """Only the database's URL is needed here: a migration job has no secrets."""
    settings = load(str(common.config) if common.config else None, os.environ, dev=True)
    if not settings.database.url.get_secret_value() and (running := dev.running(common.data)) is not None:
        settings = with_values(settings, {"database.url": running.info.database_url})
    need(settings, "database.url")
    return settings.database
