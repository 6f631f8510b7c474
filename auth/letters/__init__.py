"""Letters: what the product writes to people, in which language, and how that gets into the post.

A letter is a template beside this file, `<language>/<name>.txt`: its first line is the subject. `letter.html` makes the
HTML form of every text: a paragraph that is nothing but a link becomes a button. Files of the same names in
`mail.templates` go before ours; `<language>/<name>.html` there makes one letter's HTML by itself.

A letter is a job, enqueued with the change that it tells of. The job holds no secret: the token that a link carries
is minted when the letter is written, and only its hash stays.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import asyncpg
import jinja2
import msgspec
import structlog

from auth import one_time
from auth.users import User
from config.database import Connection, Pool
from config.jobs import Failed, GiveUp, Job, Kind, enqueue
from config.mail import Letter, Mailer, MailFailed, Undeliverable
from config.settings import Mail

JOB = "mail"
LANGUAGES = ("en", "de")
Name = Literal[
    "verify_email",
    "address_taken",
    "reset_password",
    "change_email",
    "approve_email",
    "email_changed",
    "password_changed",
    "new_device",
    "second_factor_on",
    "second_factor_off",
    "passkey_added",
    "passkey_removed",
    "recovery_codes",
    "factors_removed",
    "token_reuse",
    "account_deleted",
]
FOLDER = Path(__file__).parent

_ATTEMPTS, _LONGEST = 16, 4 * 3600.0  # a day, all in all

log = structlog.get_logger(__name__)


class Token(msgspec.Struct, frozen=True):
    """The one-time token that a letter's link carries. `ttl` in seconds."""

    purpose: one_time.Purpose
    subject: str | None
    ttl: float
    detail: dict[str, Any] = {}


class Order(msgspec.Struct, frozen=True):
    """A letter to be written: what a job of the kind "mail" holds. `values` are what its template says beside the
    product's name, and hold no secret."""

    letter: Name
    to: str
    language: str
    values: dict[str, str] = {}
    token: Token | None = None


async def post(connection: Connection, *orders: Order) -> None:
    """Letters that go out when the caller's transaction has been committed."""
    await enqueue(connection, JOB, [msgspec.to_builtins(order) for order in orders])


async def tell(
    connection: Connection,
    settings: Mail,
    letter: Name,
    user: User,
    accepted: str,
    at: float,
    more: Mapping[str, str] = {},
) -> None:
    """A notice that something happened to `user` at a time, where letters are sent; `accepted`: an Accept-Language."""
    if settings.on:
        values = {"name": user.display_name, "at": moment(at), **more}
        await post(connection, Order(letter, user.email, language_of(accepted, settings.language), values))


def language_of(accepted: str, otherwise: str) -> str:
    """The first of our languages in an Accept-Language header (RFC 9110 12.5.4), by its weights."""
    wanted = []
    for part in accepted[:200].split(","):
        tag, _, weight = part.partition(";q=")
        try:
            wanted.append((-float(weight or 1), tag.strip().partition("-")[0].lower()))
        except ValueError:
            continue
    found = [tag for weight, tag in sorted(wanted, key=lambda one: one[0]) if tag in LANGUAGES and weight < 0]
    return found[0] if found else otherwise


def moment(at: float) -> str:
    """A time as letters say it, in any language: `at` in seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


class Letters:
    """Writes and sends what was ordered."""

    def __init__(self, settings: Mail, pool: Pool) -> None:
        self._settings, self._pool = settings, pool
        self._mailer = Mailer(settings)
        self._links: Mapping[str, str] = {
            "verify_email": settings.verify_email_link,
            "reset_password": settings.reset_password_link,
            "change_email": settings.change_email_link,
            "approve_email": settings.change_email_link,
        }
        self.kind = Kind(self._send, attempts=_ATTEMPTS, longest=_LONGEST)

    async def _send(self, job: Job) -> None:
        try:
            order = msgspec.convert(job.payload, Order)
        except msgspec.ValidationError as error:
            raise GiveUp(f"it is no order: {error}") from None
        values = {"name": "", **order.values, "product": self._settings.product}
        if not values["name"].replace(" ", "").replace("-", "").isalpha():
            values["name"] = ""  # a stranger may have chosen it: no link, no sentence of his in our letter
        if order.token is not None:
            values["link"] = self._links[order.token.purpose].replace("{token}", await self._mint(order.token))
            values["hours"] = str(max(1, round(order.token.ttl / 3600)))
        letter = write(_templates(self._settings.templates), order, values, id=job.id)
        try:
            await self._mailer.send(letter)
        except (Undeliverable, MailFailed) as error:
            over = isinstance(error, Undeliverable) or job.attempt >= _ATTEMPTS
            if over and order.letter == "account_deleted":
                log.warning("farewell_not_delivered", job=job.id, error=str(error))
                return  # a dead job would keep the address of who is gone
            raise (GiveUp if over else Failed)(str(error)) from None

    async def _mint(self, token: Token) -> str:
        try:
            async with self._pool.acquire() as connection:
                return await one_time.mint(connection, token.purpose, token.subject, token.detail, ttl=token.ttl)
        except asyncpg.ForeignKeyViolationError:
            raise GiveUp("its user is gone") from None


def write(templates: jinja2.Environment, order: Order, values: Mapping[str, str], *, id: str) -> Letter:
    """The letter, in both forms. GiveUp when a template is missing or asks for what is not there."""
    language = order.language if order.language in LANGUAGES else LANGUAGES[0]
    place = f"{language}/{order.letter}"
    try:
        subject, _, text = templates.get_template(f"{place}.txt").render(values).partition("\n")
        page = templates.select_template([f"{place}.html", "letter.html"])
        html = page.render(values, language=language, subject=subject, paragraphs=_paragraphs(text))
    except jinja2.TemplateError as error:
        raise GiveUp(f"the template {place}: {type(error).__name__}: {error}") from None
    return Letter(id, order.to, subject, text.strip() + "\n", html)


def _paragraphs(text: str) -> Sequence[str]:
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]


@functools.cache
def _templates(theirs: str) -> jinja2.Environment:
    folders = [theirs, str(FOLDER)] if theirs else [str(FOLDER)]
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=jinja2.select_autoescape(["html"], default=False, default_for_string=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def check(settings: Mail) -> list[str]:
    """What is wrong with the operator's own templates: each is written once with made-up values."""
    if settings.templates and not Path(settings.templates).is_dir():
        return [f"there is no folder {settings.templates}"]
    mistakes = []
    values = dict.fromkeys(("name", "link", "hours", "email", "device", "address", "at"), "x")
    for language in LANGUAGES:
        for name in Name.__args__:  # type: ignore[attr-defined]
            try:
                order = Order(name, "a@example.org", language)
                write(_templates(settings.templates), order, values | {"product": settings.product}, id="x")
            except GiveUp as error:
                mistakes.append(str(error))
    return mistakes
