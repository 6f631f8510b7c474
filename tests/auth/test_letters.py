"""Letters: what they say, that they leave over a real SMTP server, and what happens when they cannot."""

import asyncio
import time
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from auth import letters, one_time
from auth.letters import LANGUAGES, Letters, Order, Token, language_of, post
from config import jobs as jobs_module
from config.database import Pool
from config.jobs import Jobs
from config.mail import Letter, Mailer, MailFailed, Undeliverable, kept
from config.settings import Mail
from tests.revocation.cluster import until

NAMES = letters.Name.__args__  # type: ignore[attr-defined]
VALUES = {"name": "Ada", "link": "https://example.org/#tok-en", "hours": "36", "email": "new@example.org"} | {
    "device": "Firefox on Linux",
    "address": "192.0.2.0/24",
    "at": "24 November 2026, 10:00 UTC",
    "product": "Chess",
}


def text_of(message: EmailMessage, form: str = "plain") -> str:
    body = message.get_body([form])
    assert body is not None
    return str(body.get_content()).replace("\r\n", "\n")


LETTER = Letter("id-1", "ada@example.org", "Hello", "text\n", "<p>html</p>")


class Box:
    """The other side: what came, and what it says to the next one."""

    def __init__(self) -> None:
        self.came: list[EmailMessage] = []
        self.recipient, self.content = "250 OK", "250 OK"

    async def handle_RCPT(self, _server: Any, _session: Session, envelope: Envelope, to: str, _options: Any) -> str:
        if self.recipient.startswith("2"):
            envelope.rcpt_tos.append(to)
        return self.recipient

    async def handle_DATA(self, _server: Any, _session: Session, envelope: Envelope) -> str:
        if self.content.startswith("2"):
            assert isinstance(envelope.content, bytes)
            message = message_from_bytes(envelope.content, policy=default)
            assert isinstance(message, EmailMessage)
            self.came.append(message)
        return self.content


def _who(_server: Any, _session: Any, _envelope: Any, _mechanism: str, who: Any) -> AuthResult:
    return AuthResult(success=who.password == b"right")


@pytest.fixture
def box() -> Box:
    return Box()


@pytest.fixture
async def mail(box: Box) -> AsyncIterator[Mail]:
    """Settings that lead to a server of ours."""

    def protocol() -> SMTP:
        return SMTP(box, enable_SMTPUTF8=True, authenticator=_who, auth_require_tls=False)

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    yield Mail(
        smtp_host="127.0.0.1",
        smtp_port=server.sockets[0].getsockname()[1],
        smtp_tls="none",
        sender="Chess Club <no-reply@example.org>",
        product="Chess",
        verify_email_link="https://example.org/verify#{token}",
    )
    server.close()


@pytest.fixture
async def working(pool: Pool, mail: Mail, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Jobs]:
    monkeypatch.setattr(jobs_module, "POLL", 0.05)
    monkeypatch.setattr(jobs_module, "COUNT_EVERY", 0.0)
    jobs = Jobs(pool, node="n")
    jobs.add(letters.JOB, Letters(mail, pool).kind)
    jobs.start()
    yield jobs
    await jobs.close()


async def ordered(pool: asyncpg.Pool, *orders: Order) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await post(connection, *orders)


# -- what they say


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_letter_is_written_in_every_language(name: Any, language: str) -> None:
    found = letters.write(letters._templates(""), Order(name, "a@example.org", language), VALUES, id="x")
    source = (letters.FOLDER / language / f"{name}.txt").read_text()
    assert found.subject == source.splitlines()[0]
    assert "\n" not in found.subject
    assert "Ada" in found.text
    assert "{" not in found.text + found.html
    assert f'lang="{language}"' in found.html
    for value in VALUES:
        assert (VALUES[value] in found.text) == (f"{{{{ {value} }}}}" in source or value in ("name", "product"))
    assert ("<a href=" in found.html) == ("{{ link }}" in source)


def test_what_people_chose_is_text_in_html() -> None:
    order = Order("approve_email", "a@example.org", "en")
    values = VALUES | {"email": '"<script>"@example.org', "link": 'https://example.org/#"><script>'}
    found = letters.write(letters._templates(""), order, values, id="x")
    assert "<script>" not in found.html


def test_the_operators_templates_go_before_ours(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "password_changed.txt").write_text("Changed!\n\nYours, {{ product }}")
    templates = letters._templates(str(tmp_path))
    found = letters.write(templates, Order("password_changed", "a@example.org", "en"), VALUES, id="x")
    assert (found.subject, found.text) == ("Changed!", "Yours, Chess\n")
    assert letters.check(Mail(templates=str(tmp_path))) == []


def test_mistakes_in_the_operators_templates_are_named(tmp_path: Path) -> None:
    (tmp_path / "de").mkdir()
    (tmp_path / "de" / "new_device.txt").write_text("{{ nothing_such }}")
    (tmp_path / "letter.html").write_text("{% if %}")
    mistakes = letters.check(Mail(templates=str(tmp_path)))
    assert any("de/new_device" in mistake and "nothing_such" in mistake for mistake in mistakes)
    assert any("en/verify_email" in mistake and "TemplateSyntaxError" in mistake for mistake in mistakes)


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("en-GB", "en"),
        ("fr,en;q=0.5,de;q=0.7", "de"),
        ("de;q=0, en;q=0.1", "en"),
        ("", "de"),
        ("de;q=x", "de"),
        ("*;q=" + "9" * 5000, "de"),
    ],
)
def test_the_language_is_the_one_that_is_asked_for(accepted: str, language: str) -> None:
    assert language_of(accepted, "de") == language


# -- how they leave


async def test_a_letter_leaves_over_smtp_in_both_forms(box: Box, mail: Mail) -> None:
    await Mailer(mail).send(LETTER)
    [message] = box.came
    assert (message["To"], message["From"]) == ("ada@example.org", "Chess Club <no-reply@example.org>")
    assert (message["Message-ID"], message["Auto-Submitted"]) == ("<id-1@example.org>", "auto-generated")
    assert (text_of(message), text_of(message, "html")) == ("text\n", "<p>html</p>\n")


async def test_names_and_subjects_in_other_scripts(box: Box, mail: Mail) -> None:
    await Mailer(mail).send(LETTER._replace(subject="Bestätigen Sie: 確認", to="ädä@example.org"))
    assert (box.came[0]["Subject"], box.came[0]["To"]) == ("Bestätigen Sie: 確認", "ädä@example.org")


async def test_nobody_can_add_a_header_or_a_recipient(box: Box, mail: Mail) -> None:
    await Mailer(mail).send(LETTER._replace(subject="a\r\nBcc: eve@example.org"))
    assert (box.came[0]["Subject"], box.came[0]["Bcc"]) == ("a Bcc: eve@example.org", None)
    for to in ("ada@example.org\r\nBcc: eve@example.org", "ada@example.org, eve@example.org", "", "ada"):
        with pytest.raises(Undeliverable):
            await Mailer(mail).send(LETTER._replace(to=to))
    assert len(box.came) == 1


@pytest.mark.parametrize(
    ("step", "answer", "error"),
    [
        ("recipient", "550 there is no ada@example.org", Undeliverable),
        ("recipient", "451 greylisted", MailFailed),
        ("content", "554 spam of ada@example.org", Undeliverable),
        ("content", "452 no room", MailFailed),
    ],
)
async def test_what_the_server_refuses(box: Box, mail: Mail, step: str, answer: str, error: type[Exception]) -> None:
    setattr(box, step, answer)
    with pytest.raises(error) as caught:
        await Mailer(mail).send(LETTER)
    assert answer[:3] in str(caught.value)
    assert "ada" not in str(caught.value)
    assert box.came == []


async def test_a_server_that_is_away_wants_tls_or_does_not_know_us_may_yet_come_round(mail: Mail, box: Box) -> None:
    for change in (
        {"smtp_port": 1},
        {"smtp_tls": "starttls"},
        {"smtp_tls": "implicit"},
        {"smtp_username": "club", "smtp_password": "wrong"},
    ):
        with pytest.raises(MailFailed):
            await Mailer(Mail.model_validate(mail.model_dump() | change)).send(LETTER)
    right = {"smtp_username": "club", "smtp_password": "right"}
    await Mailer(Mail.model_validate(mail.model_dump() | right)).send(LETTER)
    assert len(box.came) == 1


async def test_in_development_letters_land_in_a_folder_that_does_not_grow(tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    mailer = Mailer(Mail(folder=str(folder), sender="a@example.org"))
    for n in range(205):
        await mailer.send(LETTER._replace(id=f"id-{n}"))
    files = sorted(folder.iterdir())
    assert len(files) == 200
    assert message_from_bytes(files[-1].read_bytes())["Message-ID"] == "<id-204@example.org>"
    assert (folder.stat().st_mode & 0o777, files[0].stat().st_mode & 0o777) == (0o700, 0o600)


async def test_the_folder_is_read_newest_first_and_only_what_was_written_there(tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    assert kept(folder, 50) == []
    mailer = Mailer(Mail(folder=str(folder), sender="a@example.org"))
    link = "https://example.org/#verify=" + "t" * 120
    await mailer.send(LETTER)
    text = f"Öffne https://x.example:\n\n{link}\n\nDanke.\n"
    await mailer.send(Letter("id-2", "jörg@example.org", "Grüße", text, ""))
    (folder / "notes.eml").write_text("not ours")
    (folder / ".id-3").write_text("half of a letter")
    newest, oldest = kept(folder, 50)
    assert newest == ("id-2", "jörg@example.org", "Grüße", newest.at, text, link)
    assert (oldest.id, oldest.text, oldest.link) == ("id-1", "text\n", "")
    assert newest.at >= oldest.at > time.time() - 60
    assert [letter.id for letter in kept(folder, 1)] == ["id-2"]


# -- as jobs


async def test_a_link_carries_a_token_of_which_only_a_hash_is_kept(pool: Pool, working: Jobs, box: Box) -> None:
    await pool.execute("INSERT INTO subjects (id) VALUES ('u1')")
    token = Token("verify_email", "u1", 7200, {"email": "ada@example.org"})
    await ordered(pool, Order("verify_email", "ada@example.org", "en", {"name": "Ada"}, token))
    await until(lambda: box.came)
    text = text_of(box.came[0])
    assert "for 2 hours" in text
    secret = text.partition("https://example.org/verify#")[2].split()[0]
    async with pool.acquire() as connection:
        assert await one_time.redeem(connection, "reset_password", secret) is None
        assert await one_time.redeem(connection, "verify_email", secret) == ("u1", {"email": "ada@example.org"})
        assert await one_time.redeem(connection, "verify_email", secret) is None
    dump = str(await pool.fetch("SELECT * FROM one_time_tokens")) + str(await pool.fetch("SELECT * FROM jobs"))
    assert secret not in dump


async def test_a_letter_that_nobody_takes_is_tried_again_and_then_an_admins(
    pool: Pool, working: Jobs, box: Box
) -> None:
    box.recipient = "550 no such user"
    await ordered(pool, Order("address_taken", "ada@example.org", "de"))
    await until(lambda: working.figures()["jobs_dead"])
    assert await pool.fetchval("SELECT error FROM jobs") == "the server refused the recipient with 550"
    box.recipient = "450 later"
    await pool.execute("DELETE FROM jobs")
    await ordered(pool, Order("address_taken", "ada@example.org", "de"))
    await until(lambda: working.figures()["jobs_failed"] == 2)
    await working.close()
    assert await pool.fetchval("SELECT error FROM jobs WHERE dead_at IS NULL") == (
        "the server refused the recipient with 450"
    )


@pytest.mark.parametrize(("answer", "attempts"), [("550 no such user", 0), ("450 later", 15)])
async def test_a_farewell_that_nobody_takes_kept_the_address_of_who_is_gone(
    pool: Pool, working: Jobs, box: Box, answer: str, attempts: int
) -> None:
    box.recipient = answer
    order = Order("account_deleted", "ada@example.org", "en", {"at": "now"})
    await pool.execute(
        "INSERT INTO jobs (kind, payload, attempts) VALUES ('mail', $1, $2)", msgspec.to_builtins(order), attempts
    )
    working.wake()
    await until(lambda: working.figures()["jobs_done"])
    await working.close()
    assert await pool.fetchval("SELECT count(*) FROM jobs WHERE kind = 'mail'") == 0


async def test_letters_to_users_who_are_gone_and_orders_that_are_none_are_given_up(pool: Pool, working: Jobs) -> None:
    await ordered(pool, Order("verify_email", "a@example.org", "en", {}, Token("verify_email", "nobody", 60)))
    async with pool.acquire() as connection:
        await jobs_module.enqueue(connection, letters.JOB, [{"letter": "no such"}])
    await until(lambda: working.figures()["jobs_dead"] == 2)
    errors = {record["error"].partition(":")[0] for record in await pool.fetch("SELECT error FROM jobs")}
    assert errors == {"its user is gone", "it is no order"}


@pytest.mark.parametrize("name", ["https://evil.example", "Call 555 now", "a.b", "<b>", "you have won; visit x"])
async def test_a_stranger_wrote_into_our_letters_by_his_name(pool: Pool, working: Jobs, box: Box, name: str) -> None:
    await ordered(pool, Order("address_taken", "ada@example.org", "en", {"name": name}))
    await until(lambda: box.came)
    assert text_of(box.came[0]).startswith("Hello,\n")


# -- one-time tokens


async def test_of_twenty_at_once_one_succeeds(pool: Pool) -> None:
    await pool.execute("INSERT INTO subjects (id) VALUES ('u1')")
    async with pool.acquire() as connection:
        token = await one_time.mint(connection, "reset_password", "u1", {}, ttl=60)

    async def redeem() -> bool:
        async with pool.acquire() as connection:
            return await one_time.redeem(connection, "reset_password", token) is not None

    assert sum(await asyncio.gather(*(redeem() for _ in range(20)))) == 1


async def test_tokens_that_are_over_voided_or_made_up_are_refused(pool: Pool) -> None:
    await pool.execute("INSERT INTO subjects (id) VALUES ('u1')")
    async with pool.acquire() as connection:
        over = await one_time.mint(connection, "reset_password", "u1", {}, ttl=-1)
        void = await one_time.mint(connection, "reset_password", "u1", {}, ttl=60)
        await one_time.void(connection, "u1")
        kept = await one_time.mint(connection, "verify_email", "u1", {}, ttl=60)
        for token in (over, void, "", "x" * 100_000, "\ud800"):
            assert await one_time.redeem(connection, "reset_password", token) is None
        await one_time.mint(connection, "reset_password", "u1", {}, ttl=-1)
    assert await one_time.tidy(pool) == 1
    async with pool.acquire() as connection:
        assert await one_time.redeem(connection, "verify_email", kept) is not None
