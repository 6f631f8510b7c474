"""Registering by letter, a forgotten password, another address: as a person does it who reads the letters."""

import asyncio
import re
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from auth import mailbox
from config import jobs as jobs_module
from config.redis import Pipe
from config.settings import Settings, with_values
from sessions.model import Kind
from sessions.revocations import Revocations
from sessions.service import Sessions
from tests.auth.conftest import ORIGIN, PASSWORD, Answer, House, build, secret_of
from tests.revocation.cluster import until

ADA, BEN = "ada@example.org", "ben@example.org"
OTHER = "another long password"


class Person:
    """Somebody with a browser and a mailbox; `letters` of everybody in the order in which they came."""

    def __init__(self, house: House, folder: Path) -> None:
        self.house, self.folder = house, folder

    async def post(self, path: str, body: Any, **more: Any) -> Answer:
        return await self.house.call("POST", path, body, **more)

    async def register(self, email: str = ADA, password: str = PASSWORD, **more: Any) -> Answer:
        body = {"email": email, "password": password, "display_name": more.pop("name", "")}
        return await self.post("/auth/register", body, **more)

    async def open(self, token: str, password: str = PASSWORD, **more: Any) -> Answer:
        """Follow the link of a registration."""
        return await self.post("/auth/verify-email", {"token": token, "password": password}, **more)

    def letters(self) -> list[EmailMessage]:
        if not self.folder.exists():
            return []
        made = [message_from_bytes(file.read_bytes(), policy=default) for file in sorted(self.folder.glob("*.eml"))]
        return [message for message in made if isinstance(message, EmailMessage)]

    async def letter(self, count: int) -> EmailMessage:
        """The `count`th letter of all, when it has come."""
        await until(lambda: len(self.letters()) >= count)
        assert len(self.letters()) == count
        return self.letters()[-1]

    async def quiet(self) -> None:
        """Until everything that was asked for is answered."""
        pool = self.house.pool
        async with asyncio.timeout(5):
            while await pool.fetchval("SELECT count(*) FROM jobs WHERE key IS NULL"):
                pass

    async def known(self, email: str = ADA, password: str = PASSWORD) -> Answer:
        """An account with a session."""
        before = len(self.letters())
        assert (await self.register(email, password)).status == 202
        token = link(await self.letter(before + 1))
        assert (await self.open(token, password)).status == 204
        return await self.house.login(email, password)


def text_of(message: EmailMessage) -> str:
    body = message.get_body(["plain"])
    assert body is not None
    return str(body.get_content())


def link(message: EmailMessage) -> str:
    """The token that its link carries."""
    found = re.search(r"#(?:\w+=)?([A-Za-z0-9_-]{43})\s", text_of(message))
    assert found, text_of(message)
    return found.group(1)


@pytest.fixture
async def person(
    settings: Settings,
    pool: asyncpg.Pool,
    revocations: Revocations,
    sessions: Sessions,
    pipe: Pipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Person]:
    monkeypatch.setattr(jobs_module, "POLL", 0.02)
    values = {
        "auth.verify_email": True,
        "auth.guests": True,
        "mail.folder": str(tmp_path / "mail"),
        "mail.sender": "no-reply@example.org",
        "mail.verify_email_link": "https://app.example.org/#verify={token}",
        "mail.reset_password_link": "https://app.example.org/#reset={token}",
        "mail.change_email_link": "https://app.example.org/#email={token}",
    }
    async with build(with_values(settings, values), pool, revocations, sessions, pipe) as house:
        yield Person(house, tmp_path / "mail")


# -- registering


async def test_who_registers_opens_the_link_and_logs_in(person: Person) -> None:
    answer = await person.register(name="Ada")
    assert (answer.status, answer.json, list(answer.cookies)) == (202, {}, [])
    assert (await person.house.login(ADA)).code == "invalid_credentials"
    letter = await person.letter(1)
    assert (letter["To"], letter["Subject"]) == (ADA, "Confirm your e-mail address")
    assert text_of(letter).startswith("Hello Ada,")
    token = link(letter)
    assert (await person.open(token)).status == 204
    logged_in = await person.house.login(ADA)
    assert (logged_in.status, logged_in.json["user"]["display_name"]) == (200, "Ada")
    again = await person.open(token)
    assert (again.status, again.code, again.json["errors"][0]["field"]) == (422, "invalid", "token")


async def test_a_guest_who_opens_the_link_in_the_same_browser_stays_the_same_user(person: Person) -> None:
    """Elsewhere, or from a foreign page, it is a user of its own: a link alone takes nobody over."""
    house = person.house
    for n, (email, origin, same) in enumerate(((ADA, ORIGIN, True), (BEN, "https://evil.example", False))):
        guest = await house.call("POST", "/auth/guest", {})
        cookie = secret_of(guest)
        body = {"email": email, "password": PASSWORD}
        assert (await house.call("POST", "/auth/register", body, cookie=cookie)).status == 202
        token = link(await person.letter(n + 1))
        opened = await person.open(token, cookie=cookie, origin=origin)
        assert opened.status == 204
        assert (await house.call("GET", "/auth/me", cookie=cookie)).status == (401 if same else 200)
        logged_in = await house.login(email)
        assert (logged_in.json["user"]["id"] == guest.json["user"]["id"]) is same
        text = "select detail from audit where action = 'user.created' and target = $1"
        detail = await house.pool.fetchval(text, f"user:{logged_in.json['user']['id']}")
        assert detail == ({"replaced": [guest.json["session"]["sid"]]} if same else {})
    rows = await house.pool.fetch("select kind from revocation_log where kind <> 6 order by seq")
    assert [row["kind"] for row in rows] == [Kind.RIGHTS, Kind.SESSION]


async def test_a_guest_who_opened_the_link_of_a_strangers_registration_was_taken_over_by_the_stranger(
    person: Person,
) -> None:
    """The stranger, a guest or nobody, knows the password; the guest's id is not theirs to have."""
    house = person.house
    for n, (email, registers) in enumerate(((ADA, True), (BEN, False))):
        stranger, victim = [secret_of(await house.call("POST", "/auth/guest", {})) for _ in range(2)]
        body = {"email": email, "password": PASSWORD}
        asked = await house.call("POST", "/auth/register", body, cookie=stranger if registers else "")
        assert asked.status == 202
        token = link(await person.letter(n + 1))
        assert (await person.open(token, cookie=victim)).status == 204
        me = await house.call("GET", "/auth/me", cookie=victim)
        assert (me.status, me.json["user"]["email"]) == (200, "")
        assert (await house.login(email)).json["user"]["id"] != me.json["user"]["id"]


async def test_a_taken_address_gets_a_letter_and_the_stranger_the_same_answer(person: Person) -> None:
    await person.known()
    first = await person.register(BEN)
    taken = await person.register(ADA, OTHER)
    assert (taken.status, taken.text) == (first.status, first.text)
    await person.quiet()
    subjects = {message["To"]: message["Subject"] for message in person.letters()}
    assert subjects == {ADA: "You already have an account", BEN: "Confirm your e-mail address"}
    assert (await person.house.login(ADA, OTHER)).code == "invalid_credentials"


async def test_an_unconfirmed_registration_holds_no_address(person: Person) -> None:
    """Who registered with somebody else's address first does not get the account of the one whose mailbox it is."""
    await person.register(ADA, OTHER)
    stranger = link(await person.letter(1))
    await person.register(ADA, PASSWORD)
    await person.open(link(await person.letter(2)))
    assert (await person.house.login(ADA)).status == 200
    assert (await person.house.login(ADA, OTHER)).code == "invalid_credentials"
    assert (await person.open(stranger)).code == "invalid"


async def test_who_opened_the_link_of_a_strangers_registration_got_an_account_that_the_stranger_could_use(
    person: Person,
) -> None:
    """Whose mailbox it is does not know the password that a stranger chose, and the guesses are counted."""
    await person.register(ADA, OTHER)
    token = link(await person.letter(1))
    assert (await person.open(token, PASSWORD)).code == "invalid_credentials"
    assert (await person.house.login(ADA, OTHER)).code == "invalid_credentials"
    codes = [(await person.open(token, f"{PASSWORD} {n}")).code for n in range(6)]
    assert codes[-1] == "too_many_attempts"
    await person.register(ADA, PASSWORD)
    assert (await person.post("/auth/verify-email/resend", {"email": ADA})).status == 202
    for letter in (await person.letter(3), person.letters()[1]):
        assert link(letter) != token
    assert await person.house.pool.fetchval("SELECT count(*) FROM users WHERE email = $1", ADA) == 0


async def test_the_letter_comes_again_and_in_the_language_that_is_asked_for(person: Person) -> None:
    await person.register(headers={"Accept-Language": "de-CH"})
    assert (await person.letter(1))["Subject"] == "Bestätigen Sie Ihre E-Mail-Adresse"
    answer = await person.post("/auth/verify-email/resend", {"email": ADA}, headers={"Accept-Language": "en"})
    assert (answer.status, answer.json) == (202, {})
    letter = await person.letter(2)
    assert letter["Subject"] == "Confirm your e-mail address"
    assert (await person.open(link(letter))).status == 204
    await person.post("/auth/verify-email/resend", {"email": ADA})
    await person.quiet()
    assert len(person.letters()) == 2


async def test_a_link_is_for_one_thing_only(person: Person) -> None:
    await person.known()
    await person.post("/auth/password/forgot", {"email": ADA})
    token = link(await person.letter(2))
    assert (await person.open(token)).code == "invalid"
    assert (await person.post("/auth/email/confirm", {"token": token})).code == "invalid"
    for made_up in ("", "x", "x" * 8000):
        for path, more in (
            ("/auth/verify-email", {"password": OTHER}),
            ("/auth/email/confirm", {}),
            ("/auth/password/reset", {"new_password": OTHER}),
        ):
            assert (await person.post(path, {"token": made_up, **more})).code == "invalid"
    assert (await person.post("/auth/password/reset", {"token": token, "new_password": OTHER})).status == 204


# -- a forgotten password


async def test_a_forgotten_password_is_set_anew_and_every_session_ends(person: Person) -> None:
    session = (await person.known()).json["access_token"]
    assert (await person.post("/auth/password/forgot", {"email": "ADA@example.org"})).status == 202
    token = link(await person.letter(2))
    for bad in ("short", "password1234", f"{ADA}1"):  # and the link stays good
        refused = await person.post("/auth/password/reset", {"token": token, "new_password": bad})
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "new_password"), bad
    assert (await person.post("/auth/password/reset", {"token": token, "new_password": OTHER})).status == 204
    assert (await person.house.call("GET", "/auth/me", token=session)).json["reason"] == "password_changed"
    assert (await person.house.login(ADA)).code == "invalid_credentials"
    assert (await person.house.login(ADA, OTHER)).status == 200
    assert (await person.letter(3))["Subject"] == "Your password was changed"


async def test_of_twenty_at_once_one_sets_the_password(person: Person) -> None:
    await person.known()
    await person.post("/auth/password/forgot", {"email": ADA})
    token = link(await person.letter(2))
    passwords = [f"a long password, number {n}" for n in range(20)]
    answers = await asyncio.gather(
        *(person.post("/auth/password/reset", {"token": token, "new_password": p}) for p in passwords)
    )
    assert sorted(answer.status for answer in answers if answer.status != 503) == [204] + [422] * (
        sum(answer.status == 422 for answer in answers)
    )
    [n] = [n for n, answer in enumerate(answers) if answer.status == 204]
    assert (await person.house.login(ADA, passwords[n])).status == 200


async def test_another_password_or_a_disabled_account_makes_links_void(person: Person) -> None:
    me = await person.known()
    await person.post("/auth/password/forgot", {"email": ADA})
    token = link(await person.letter(2))
    change = {"current_password": PASSWORD, "new_password": OTHER}
    assert (await person.post("/auth/password", change, token=me.json["access_token"])).status == 204
    assert (await person.post("/auth/password/reset", {"token": token, "new_password": PASSWORD})).code == "invalid"
    await person.post("/auth/password/forgot", {"email": ADA})
    await person.quiet()
    token = link(person.letters()[-1])
    await person.house.pool.execute("UPDATE subjects SET state = 'disabled' WHERE id = $1", me.json["user"]["id"])
    assert (await person.post("/auth/password/reset", {"token": token, "new_password": PASSWORD})).code == "invalid"


async def test_nobody_learns_from_the_answer_whether_there_is_an_account(person: Person) -> None:
    await person.known()
    for path in ("/auth/password/forgot", "/auth/verify-email/resend"):
        known = await person.post(path, {"email": ADA})
        unknown = await person.post(path, {"email": "nobody@example.org"})
        assert (known.status, known.text) == (unknown.status, unknown.text) == (202, "{}")
    await person.quiet()
    assert [message["To"] for message in person.letters()] == [ADA, ADA]


async def test_a_mailbox_is_not_flooded_and_an_address_cannot_ask_for_ever(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    await person.known()
    for _ in range(8):
        assert (await person.post("/auth/password/forgot", {"email": ADA})).status == 202
    await person.quiet()
    assert len(person.letters()) == mailbox.LETTERS_PER_HOUR
    monkeypatch.setattr(mailbox, "ASKED_PER_HOUR", 3)
    answers = [await person.post("/auth/password/forgot", {"email": BEN}, address="198.51.100.7") for _ in range(4)]
    assert [answer.status for answer in answers] == [202, 202, 202, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0


async def test_whose_password_was_guessed_at_too_often_gets_in_with_a_new_one(person: Person) -> None:
    await person.known()
    await person.house.pool.execute("UPDATE users SET failures = 100")
    assert (await person.house.login(ADA, address="198.51.100.9")).code == "invalid_credentials"
    await person.post("/auth/password/forgot", {"email": ADA})
    body = {"token": link(await person.letter(2)), "new_password": OTHER}
    assert (await person.post("/auth/password/reset", body, address="198.51.100.9")).status == 204
    assert (await person.house.login(ADA, OTHER, address="198.51.100.9")).status == 200


async def test_a_new_device_and_a_new_password_are_told(person: Person) -> None:
    me = await person.known()
    await person.house.login(ADA, address="198.51.100.20", headers={"User-Agent": "curl/8", "Accept-Language": "de"})
    letter = await person.letter(2)
    assert (letter["To"], letter["Subject"]) == (ADA, "Ein neues Gerät hat sich angemeldet")
    assert "198.51.100.0/24" in text_of(letter)
    await person.house.login(ADA, address="198.51.100.20")
    change = {"current_password": PASSWORD, "new_password": OTHER}
    assert (await person.post("/auth/password", change, token=me.json["access_token"])).status == 204
    assert (await person.letter(3))["Subject"] == "Your password was changed"


# -- another address


async def ask_for_another(person: Person, me: Answer, email: str = BEN, password: str = PASSWORD) -> Answer:
    body = {"new_email": email, "current_password": password}
    return await person.post("/auth/email", body, token=me.json["access_token"])


async def test_an_address_changes_when_both_mailboxes_say_yes(person: Person) -> None:
    me = await person.known()
    assert (await ask_for_another(person, me)).status == 202
    await person.quiet()
    new, old = sorted(person.letters()[1:], key=lambda message: str(message["To"]), reverse=True)
    assert (new["To"], old["To"]) == (BEN, ADA)
    assert BEN in text_of(old)
    first = await person.post("/auth/email/confirm", {"token": link(new)})
    assert (first.status, first.json) == (200, {"changed": False})
    assert (await person.house.login(ADA)).status == 200
    second = await person.post("/auth/email/confirm", {"token": link(old)})
    assert second.json == {"changed": True}
    assert (await person.house.login(ADA)).code == "invalid_credentials"
    assert (await person.house.login(BEN)).json["user"]["email"] == BEN
    await person.quiet()
    told = person.letters()[-1]
    assert (told["To"], told["Subject"]) == (ADA, "Your e-mail address was changed")
    actions = await person.house.pool.fetch("SELECT action FROM audit WHERE action LIKE 'user.email%' ORDER BY id")
    assert [row["action"] for row in actions] == ["user.email_change_asked", "user.email_changed"]


async def test_an_address_that_is_taken_is_told_and_nobody_else(person: Person) -> None:
    me = await person.known()
    await person.known(BEN, OTHER)
    assert (await ask_for_another(person, me)).status == 202
    await person.quiet()
    assert (person.letters()[-1]["To"], person.letters()[-1]["Subject"]) == (BEN, "You already have an account")
    assert len(person.letters()) == 3


async def test_sec_07_whether_an_address_is_taken_is_looked_up_by_a_job(person: Person) -> None:
    me = await person.known()
    await person.known(BEN, OTHER)
    await person.quiet()
    await person.house.accounts.jobs.close()
    asked = []
    for email in (BEN, "nobody@example.org"):
        assert (await ask_for_another(person, me, email)).status == 202
        asked += await person.house.pool.fetch("DELETE FROM jobs WHERE key IS NULL RETURNING kind, payload")
    assert [row["kind"] for row in asked] == ["mailbox.change"] * 2
    assert {tuple(row["payload"]) for row in asked} == {("change", "subject", "language")}


async def test_an_address_that_was_taken_meanwhile_stays_where_it_is(person: Person) -> None:
    me = await person.known()
    await ask_for_another(person, me)
    await person.quiet()
    new, old = sorted(person.letters()[1:], key=lambda message: str(message["To"]), reverse=True)
    await person.known(BEN, OTHER)
    await person.post("/auth/email/confirm", {"token": link(new)})
    assert (await person.post("/auth/email/confirm", {"token": link(old)})).code == "email_taken"
    assert (await person.house.login(ADA)).status == 200


async def test_a_change_of_address_wants_the_password_and_dies_with_it(person: Person) -> None:
    me = await person.known()
    assert (await ask_for_another(person, me, password="a wrong password")).code == "invalid_credentials"
    assert (await ask_for_another(person, me, email="no address")).code == "invalid"
    await ask_for_another(person, me)
    await person.quiet()
    tokens = [link(message) for message in person.letters()[1:]]
    change = {"current_password": PASSWORD, "new_password": OTHER}
    assert (await person.post("/auth/password", change, token=me.json["access_token"])).status == 204
    assert {(await person.post("/auth/email/confirm", {"token": token})).code for token in tokens} == {"invalid"}


# -- all of it


async def test_without_mail_nothing_is_promised(house: House) -> None:
    for path in ("/auth/password/forgot", "/auth/verify-email/resend"):
        assert (await house.call("POST", path, {"email": ADA})).code == "forbidden"


async def test_neither_tokens_nor_addresses_stand_where_they_should_not(
    person: Person, capfd: pytest.CaptureFixture[str]
) -> None:
    await person.known()
    await person.post("/auth/password/forgot", {"email": ADA})
    token = link(await person.letter(2))
    pool, dump = person.house.pool, ""
    for row in await pool.fetch("SELECT oid::regclass::text AS name FROM pg_class WHERE relkind = 'r' AND oid > 16384"):
        dump += str(await pool.fetch(f"SELECT t::text FROM {row['name']} t"))
    assert ADA in dump
    assert token not in dump
    audit = str(await person.house.pool.fetch("SELECT * FROM audit"))
    logged = capfd.readouterr()
    for text in (audit, logged.out, logged.err):
        assert ADA not in text
        assert token not in text


async def test_what_was_never_confirmed_is_forgotten(person: Person) -> None:
    await person.register()
    await person.quiet()
    pool = person.house.pool
    await pool.execute("UPDATE registrations SET created_at = now() - interval '25 hours'")
    await pool.execute("UPDATE one_time_tokens SET expires_at = now() - interval '1 hour'")
    await pool.execute("UPDATE jobs SET run_at = now() WHERE kind = 'mailbox.tidy'")
    person.house.accounts.jobs.wake()
    async with asyncio.timeout(5):
        while await pool.fetchval("SELECT EXISTS (TABLE registrations) OR EXISTS (TABLE one_time_tokens)"):
            pass


async def test_two_links_for_one_address_that_were_opened_at_once_waited_for_each_other(pool: asyncpg.Pool) -> None:
    first, second = "0" * 31 + "1", "0" * 31 + "2"
    async with pool.acquire() as one, pool.acquire() as two, pool.acquire() as three:
        for id in (second, first):
            await one.execute(mailbox._REGISTER, id, ADA, ADA, "", "", None)
        async with one.transaction():
            await one.execute("SELECT FROM registrations WHERE id = $1 FOR UPDATE", first)
            taking = asyncio.create_task(two.fetchrow(mailbox._TAKE, second))
            waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)"
            async with asyncio.timeout(2):
                while not await three.fetchval(waits, two.get_server_pid()):
                    pass
            await one.execute("SELECT FROM registrations WHERE id = $1 FOR UPDATE NOWAIT", second)
        taken = await taking
        assert taken is not None
        assert taken["id"].hex == second
        assert not await one.fetchval("SELECT count(*) FROM registrations")


async def test_without_accounts_of_our_own_no_letter_is_asked_for(
    settings: Settings, pool: asyncpg.Pool, revocations: Revocations, sessions: Sessions, pipe: Pipe, tmp_path: Path
) -> None:
    values = {"auth.local_accounts": False, "mail.folder": str(tmp_path), "mail.sender": "a@example.org"}
    async with build(with_values(settings, values), pool, revocations, sessions, pipe) as house:
        answer = await house.call("POST", "/auth/password/forgot", {"email": ADA})
        assert (answer.status, answer.json["detail"]) == (403, "accounts are kept elsewhere")


async def test_who_deletes_the_account_gets_a_last_letter_and_the_address_is_kept_nowhere(person: Person) -> None:
    house, pool = person.house, person.house.pool
    token = (await person.known()).json["access_token"]
    before = len(person.letters())
    german = {"Accept-Language": "de-CH"}
    gone = await house.call("DELETE", "/auth/me", {"password": PASSWORD}, token=token, headers=german)
    assert gone.status == 200, gone.text
    letter = await person.letter(before + 1)
    assert (letter["To"], letter["Subject"]) == (ADA, "Ihr Konto wurde gelöscht")
    await person.quiet()
    assert await pool.fetchval("SELECT count(*) FROM jobs WHERE strpos(payload::text, $1) > 0", ADA) == 0
    id = (await person.known()).json["user"]["id"]
    await person.known(BEN)
    await pool.execute("UPDATE subjects SET roles = '{admin}' WHERE id <> $1", id)
    admin = (await house.login(BEN)).json["access_token"]
    before = len(person.letters())
    assert (await house.call("DELETE", f"/admin/users/{id}", {"reason": "x"}, token=admin)).status == 200
    assert (await person.letter(before + 1))["Subject"] == "Your account was deleted"
