"""The demo page in a real Chromium: what a person sees and can reach, and that nothing breaks the page's own policy."""

import asyncio
import base64
import hmac
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypedDict

import asyncpg
import pyotp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from multidict import CIMultiDictProxy
from playwright.async_api import Browser, BrowserContext, CDPSession, Locator, Page, Route, async_playwright, expect

from tests.world.conftest import PASSWORD, World, running
from tests.world.test_letters import letter_to

pytestmark = pytest.mark.browser
ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Options(TypedDict, total=False):
    executable_path: Path
    args: list[str]


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    options = Options(args=[*ARGUMENTS, *(["--no-sandbox"] if os.getuid() == 0 else [])])
    if found := shutil.which("chromium") or shutil.which("google-chrome"):
        options["executable_path"] = Path(found)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(**options)
        yield browser
        await browser.close()


class People:
    """Browser contexts (each a person with cookies of their own), and every complaint of their consoles."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []

    async def context(self, scheme: str = "light") -> BrowserContext:
        context = await self._browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
        context.set_default_timeout(10_000)
        self._contexts.append(context)
        return context

    async def page(self, world: World, context: BrowserContext | None = None) -> Page:
        page = await (context or await self.context()).new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda m: self.complaints.append(m.text) if "Content Security Policy" in m.text else None)
        await page.goto(world.url + "/")
        return page

    async def close(self) -> None:
        for context in self._contexts:
            await context.close()


@pytest.fixture
async def people(browser: Browser) -> AsyncIterator[People]:
    people = People(browser)
    yield people
    await people.close()
    assert people.complaints == []


def door(page: Page) -> Locator:
    return page.locator("#door")


async def fill_in(form: Locator, email: str, password: str = PASSWORD, name: str = "") -> None:
    await form.get_by_label("E-mail").fill(email)
    await form.get_by_label("Password").fill(password)
    if name:
        await form.get_by_label("Name that others see").fill(name)


def new_address(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}@example.org"


async def register(page: Page, name: str) -> str:
    email = new_address(name)
    await page.get_by_label("Register").check()
    await fill_in(door(page), email, name=name)
    await page.get_by_role("button", name="Continue").click()
    await expect(page.get_by_text("connected", exact=True)).to_be_visible()
    return email


async def log_in(page: Page, email: str, password: str = PASSWORD) -> None:
    await fill_in(door(page), email, password)
    await page.get_by_role("button", name="Continue").click()
    await expect(page.get_by_text("connected", exact=True)).to_be_visible()


async def test_two_people_talk_and_see_each_other(one_worker: World, people: People) -> None:
    ada, ben = await people.page(one_worker), await people.page(one_worker)
    await register(ada, "Ada")
    await register(ben, "Ben")
    await expect(ada.locator("#present li")).to_have_text(["Ada (you)", "Ben"])
    await expect(ben.locator("#present li")).to_have_text(["Ada", "Ben (you)"])
    await expect(ada.get_by_role("log")).to_contain_text("Ben came in.")
    await ben.get_by_label("Message", exact=True).fill("hello <b>there</b>")
    await ben.get_by_role("button", name="Send").click()
    for page in (ada, ben):
        await expect(page.get_by_role("log")).to_contain_text("Ben: hello <b>there</b>")
    await ben.close()
    await expect(ada.locator("#present li")).to_have_text(["Ada (you)"])


async def test_who_gave_no_name_is_nobody_in_particular_to_others(three_workers: World, people: People) -> None:
    ada, mute = await people.page(three_workers), await people.page(three_workers)
    await register(ada, "Ada")
    email = await register(mute, "")
    await expect(ada.locator("#present")).to_contain_text("someone")
    await mute.get_by_label("Message", exact=True).fill("hello")
    await mute.get_by_role("button", name="Send").click()
    await expect(ada.get_by_role("log")).to_contain_text("hello")
    assert email.partition("@")[0] not in await ada.content()


async def test_the_rule_for_passwords_is_told_to_who_registers(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    rule, password = door(page).get_by_text("At least 12 characters"), door(page).get_by_label("Password")
    await expect(rule).to_be_hidden()
    await expect(password).to_have_accessible_description("")
    await page.get_by_label("Register").check()
    await expect(rule).to_be_visible()
    await expect(password).to_have_accessible_description(re.compile("At least 12 characters"))
    await page.get_by_label("Log in").check()
    await expect(rule).to_be_hidden()
    await expect(password).to_have_accessible_description("")


async def test_ending_a_session_tells_the_other_browser_why(one_worker: World, people: People) -> None:
    desk, phone = await people.page(one_worker), await people.page(one_worker)
    email = await register(desk, "Cleo")
    await log_in(phone, email)
    await desk.get_by_role("button", name="Refresh").first.click()
    await expect(desk.locator("#sessions tr")).to_have_count(2)
    await desk.locator("#sessions tr").filter(has_not_text="this one").get_by_role("button").click()
    await expect(phone.get_by_role("heading", name="You were logged out")).to_be_visible()
    await expect(phone.get_by_text("You ended this session from another device.")).to_be_visible()
    await expect(phone.get_by_text("code 4501")).to_be_visible()
    await expect(desk.locator("#sessions tr")).to_have_count(1)
    await phone.get_by_role("button", name="Log in again").click()
    await log_in(phone, email)


async def test_a_session_that_ended_before_its_list_was_drawn_again_was_an_error_of_the_page(
    one_worker: World, people: People
) -> None:
    page = await people.page(one_worker)
    asked = 0

    async def answer(route: Route) -> None:
        nonlocal asked
        asked += 1
        await (route.continue_() if asked == 1 else route.fulfill(status=401, json={"title": "The session has ended"}))

    await page.route("**/auth/sessions*", answer)
    async with page.expect_response(lambda response: "/auth/sessions" in response.url and response.status == 401):
        await register(page, "Ada")
    await page.evaluate("new Promise((done) => setTimeout(done))")  # what nobody catches is told in a turn of its own


async def test_a_second_tab_closes_with_the_logout(one_worker: World, people: People) -> None:
    context = await people.context()
    first = await people.page(one_worker, context)
    await register(first, "Dora")
    second = await people.page(one_worker, context)
    await expect(second.get_by_text("connected", exact=True)).to_be_visible()
    await first.get_by_role("button", name="Log out").click()
    for page in (first, second):
        await expect(page.get_by_text("You logged out.")).to_be_visible()


async def test_a_wrong_password_says_so_and_keeps_the_form(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    await fill_in(door(page), "nobody@example.org", "not the password")
    await page.get_by_role("button", name="Continue").click()
    await expect(page.get_by_role("alert").filter(has_text="E-mail, password or code is wrong")).to_be_visible()
    assert await door(page).get_by_label("E-mail").input_value() == "nobody@example.org"


async def choose(admin: Page, email: str) -> None:
    """Find somebody among all the people, and have before one what can be done about them."""
    await admin.get_by_label("Address begins with").fill(email)
    await admin.keyboard.press("Enter")
    await admin.get_by_role("button", name=f"Choose: {email}").click()
    await expect(admin.locator("#person-title")).to_be_focused()


async def do(admin: Page, deed: str, reason: str) -> None:
    await admin.locator("#person-deeds").get_by_role("button", name=deed).click()
    await answer(admin, deed, reason)


async def answer(admin: Page, deed: str, reason: str = "") -> None:
    """Say that it shall be done, and why."""
    dialog = admin.get_by_role("dialog")
    if reason:
        await dialog.get_by_role("button", name=deed).click()
        await expect(dialog.get_by_role("alert")).to_have_text("Say why, please.")
        await dialog.get_by_label("Why, for the audit").fill(reason)
    await dialog.get_by_role("button", name=deed).click()
    await expect(dialog).to_have_count(0)


async def told_secret(admin: Page) -> str:
    """The secret that is shown this once."""
    await expect(admin.locator("#secret-value")).to_be_focused()
    await admin.keyboard.press("Escape")
    secret = await admin.locator("#secret-value").inner_text()
    await admin.get_by_role("button", name="I have kept it").click()
    await expect(admin.locator("#secret-value")).to_be_empty()
    assert secret
    assert secret not in await admin.content()
    return secret


async def log_in_as_admin(page: Page, world: World) -> None:
    await log_in(page, world.info["admin"]["email"], world.info["admin"]["password"])


async def test_who_registers_by_letter_follows_its_link_and_logs_in(people: People) -> None:
    async with running(1, WARDGATE_AUTH_VERIFY_EMAIL="true", WARDGATE_AUTH_GUESTS="false") as world:
        ada, admin, email = await people.page(world), await people.page(world), new_address("ada")
        await ada.get_by_label("Register").check()
        await fill_in(door(ada), email, name="Ada")
        await ada.get_by_role("button", name="Continue").click()
        await expect(door(ada).get_by_role("status")).to_contain_text("Look into your mailbox")
        await expect(ada.get_by_role("button", name="Come in as a guest")).to_be_hidden()
        await ada.get_by_role("button", name="Send the letter again").click()
        await expect(door(ada).get_by_role("status")).to_contain_text("a letter is on its way")
        await letter_to(world, (await world.admin()).access, email)
        await log_in_as_admin(admin, world)
        letter = admin.locator("#letters-list li").filter(has_text=email).first
        await letter.locator("summary").click()
        await expect(letter).to_contain_text("without the link the account cannot be used")
        link = await letter.get_by_role("link", name="Confirm your e-mail address").get_attribute("href")
        assert link is not None
        await ada.goto(link)
        field = ada.locator("#letter").get_by_label("Password", exact=True)
        await expect(field).to_be_focused()
        await ada.keyboard.type("not the password of Ada")
        await ada.keyboard.press("Enter")
        await expect(ada.locator("#letter").get_by_role("alert")).not_to_be_empty()
        await field.fill(PASSWORD)
        await ada.keyboard.press("Enter")
        await expect(ada.get_by_role("heading", name="Your address is confirmed")).to_be_focused()
        assert ada.url == world.url + "/"
        await log_in(ada, email)
        await ada.goto(link)
        await ada.keyboard.type(PASSWORD)
        await ada.keyboard.press("Enter")
        await expect(ada.locator("#letter")).to_contain_text("the link is used")
        await expect(ada.get_by_text("connected", exact=True)).to_be_visible()
        await ada.go_back()
        assert "verify=" not in ada.url


async def test_a_forgotten_password_is_set_anew_and_closes_what_was_open(one_worker: World, people: People) -> None:
    elsewhere, owner = await people.page(one_worker), await people.page(one_worker)
    email = await register(elsewhere, "Hana")
    await owner.get_by_role("button", name="Forgot your password?").click()
    await expect(owner.get_by_role("alert").filter(has_text="Your e-mail address first")).to_be_visible()
    await expect(door(owner).get_by_label("E-mail")).to_be_focused()
    await owner.keyboard.type(email)
    await owner.get_by_role("button", name="Forgot your password?").click()
    await expect(door(owner).get_by_role("status")).to_contain_text("a letter is on its way")
    await owner.goto((await letter_to(one_worker, (await one_worker.admin()).access, email))["link"])
    field = owner.locator("#letter").get_by_label("New password")
    await expect(field).to_be_focused()
    assert owner.url == one_worker.url + "/"
    await expect(field).to_have_accessible_description(re.compile("At least 12 characters"))
    await owner.keyboard.type("short")
    await owner.keyboard.press("Enter")
    await expect(owner.locator("#letter").get_by_role("alert")).to_contain_text("new_password")
    await field.fill("another walk along the river 5")
    await owner.keyboard.press("Enter")
    await expect(owner.get_by_role("heading", name="Your new password is set")).to_be_focused()
    await expect(elsewhere.get_by_text("The password was changed.")).to_be_visible()
    await expect(elsewhere.get_by_text("code 4501")).to_be_visible()
    await log_in(owner, email, "another walk along the river 5")


async def test_an_address_changes_when_both_mailboxes_confirm(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    old, new = await register(page, "Jana"), new_address("jana")
    await page.get_by_text("Change my address").click()
    form = page.locator("#change-address")
    await form.get_by_label("New e-mail").fill(new)
    await form.get_by_label("Current password").fill(PASSWORD)
    await form.get_by_role("button", name="Send the letters").click()
    await expect(page.locator("#self-note")).to_contain_text("your old and to your new mailbox")
    admin = (await one_worker.admin()).access
    await page.goto((await letter_to(one_worker, admin, new))["link"])
    await expect(page.get_by_role("heading", name="One of two mailboxes has confirmed")).to_be_visible()
    await page.goto("about:blank")
    await page.goto((await letter_to(one_worker, admin, old))["link"])
    await expect(page.get_by_role("heading", name="Your address has changed")).to_be_focused()
    assert page.url == one_worker.url + "/"
    await page.get_by_role("button", name="Log out").click()
    await page.get_by_role("button", name="Log in again").click()
    await log_in(page, new)


async def test_who_changes_the_password_stays_and_the_others_go(one_worker: World, people: People) -> None:
    desk, phone = await people.page(one_worker), await people.page(one_worker)
    email = await register(desk, "Kim")
    await log_in(phone, email)
    await desk.get_by_text("Change my password").click()
    form = desk.locator("#change-password")
    await form.get_by_label("Current password").fill(PASSWORD)
    await form.get_by_label("New password").fill("another walk along the river 5")
    await desk.keyboard.press("Enter")
    await expect(desk.locator("#self-note")).to_contain_text("Your password is changed")
    await expect(phone.get_by_text("The password was changed.")).to_be_visible()
    await expect(desk.locator("#sessions tr")).to_have_count(1)


async def test_a_guest_registers_and_stays_the_same_person(one_worker: World, people: People) -> None:
    page, email = await people.page(one_worker), new_address("lena")
    await page.get_by_role("button", name="Come in as a guest").click()
    await expect(page.get_by_text("connected", exact=True)).to_be_visible()
    await expect(page.locator("#who")).to_have_text("Guest")
    await expect(page.get_by_text("Change my password")).to_be_hidden()
    guest = await page.locator("#present li").filter(has_text="(you)").get_attribute("title")
    await fill_in(page.locator("#upgrade"), email, name="Lena")
    await page.keyboard.press("Enter")
    await expect(page.locator("#self-note")).to_contain_text("You are registered")
    await expect(page.locator("#who")).to_have_text("Lena")
    await expect(page.get_by_text("connected", exact=True)).to_be_visible()
    await expect(page.locator("#present li")).to_have_text(["Lena (you)"])
    assert await page.locator("#present li").get_attribute("title") == guest
    await expect(page.locator("#sessions tr")).to_have_count(1)
    await expect(page.get_by_text("Change my password")).to_be_visible()


async def test_who_goes_takes_all_that_is_kept_along_and_is_gone(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    email, mine = await register(page, "Mona"), page.locator("#self")
    await mine.get_by_text("Change my name or picture").click()
    await mine.get_by_label("Name that others see").last.fill("Mona L.")
    await page.keyboard.press("Enter")
    await expect(page.locator("#who")).to_have_text("Mona L.")
    await mine.get_by_text("Have all that is kept of me").click()
    async with page.expect_download() as download:
        await mine.get_by_role("button", name="Download it").click()
    kept = json.loads((await (await download.value).path()).read_bytes())
    assert (kept["profile"]["email"], kept["profile"]["display_name"]) == (email, "Mona L.")
    await mine.locator("summary").filter(has_text="Delete my account").click()
    erase = page.locator("#erase")
    await erase.get_by_label("Password").fill("not the password of Mona")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Escape")
    await expect(mine.get_by_role("alert").filter(has_text="Nothing was done.")).to_be_visible()
    await erase.get_by_role("button").click()
    await answer(page, "Delete it for good")
    await expect(mine.get_by_role("alert").filter(has_text="is wrong")).to_be_visible()
    await erase.get_by_label("Password").fill(PASSWORD)
    await erase.get_by_role("button").click()
    await answer(page, "Delete it for good")
    await expect(page.get_by_text("This account was deleted")).to_be_visible()
    await page.get_by_role("button", name="Log in again").click()
    await fill_in(door(page), email)
    await page.keyboard.press("Enter")
    await expect(door(page).get_by_role("alert").filter(has_text="is wrong")).to_be_visible()


async def test_a_guest_who_deletes_the_account_gives_no_password(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    await page.get_by_role("button", name="Come in as a guest").click()
    await page.locator("#self summary").filter(has_text="Delete my account").click()
    await expect(page.locator("#erase").get_by_label("Password")).to_be_hidden()
    await page.locator("#erase").get_by_role("button").click()
    await answer(page, "Delete it for good")
    await expect(page.get_by_text("This account was deleted")).to_be_visible()


async def test_a_new_password_is_called_weak_or_strong_while_it_is_typed(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    await page.get_by_label("Register").check()
    await door(page).get_by_label("E-mail").fill("nina.novak@example.org")
    await door(page).get_by_label("Password").fill("nina.novak@example.org")
    await expect(page.locator("#password-rule")).to_contain_text("This one is weak: ")
    await door(page).get_by_label("Password").fill("seven herons over a quiet estuary")
    await expect(page.locator("#password-rule")).to_contain_text("This one is strong.")


async def with_an_authenticator(page: Page, world: World) -> CDPSession:
    """The page where it has a name, in a browser with a device that makes passkeys and verifies its holder."""
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("WebAuthn.enable")
    options = {"protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True}
    options |= {"isUserVerified": True, "automaticPresenceSimulation": True}
    await devtools.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    await page.goto(world.url.replace("127.0.0.1", "localhost") + "/")
    return devtools


async def test_a_passkey_is_added_logs_in_alone_and_after_a_password_and_is_removed(
    one_worker: World, people: People
) -> None:
    page = await people.page(one_worker)
    await expect(page.get_by_role("button", name="Sign in with a passkey")).to_be_hidden()  # no passkeys for addresses
    await with_an_authenticator(page, one_worker)
    email, mine = await register(page, "Noor"), page.locator("#factors")
    await expect(mine.get_by_text("Your password alone logs you in.")).to_be_visible()
    name = mine.get_by_label("Name of a new passkey")
    await name.fill("Noor's laptop")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Your recovery codes")).to_be_focused()
    await expect(mine.locator("#recovery-codes li")).to_have_count(10)
    code = await mine.locator("#recovery-codes li").first.text_content() or ""
    await mine.get_by_role("button", name="I have kept them").click()
    await expect(mine).not_to_contain_text(code)
    await expect(mine.get_by_label("Name of Noor's laptop")).to_have_value("Noor's laptop")
    await expect(mine.get_by_text("10 codes left.")).to_be_visible()
    await page.get_by_role("button", name="Add a passkey").click()
    await expect(mine.get_by_role("alert").filter(has_text="has a passkey of your account already")).to_be_visible()
    await mine.get_by_label("Name of Noor's laptop").fill("Laptop")
    await mine.get_by_role("button", name="Rename: Noor's laptop").click()
    await expect(mine.get_by_label("Name of Laptop")).to_be_visible()

    async def out() -> None:
        await page.get_by_role("button", name="Log out").click()
        await page.get_by_role("button", name="Log in again").click()

    await out()
    await page.get_by_role("button", name="Sign in with a passkey").click()
    await expect(page.locator("#who")).to_have_text("Noor")
    await expect(page.get_by_text("connected", exact=True)).to_be_visible()
    await expect(mine.locator("#passkeys tr")).to_contain_text("just now")
    await out()
    await fill_in(door(page), email)
    await page.get_by_role("button", name="Continue").click()
    await expect(page.get_by_label("Code of your app, or a recovery code").first).to_be_focused()
    await page.get_by_role("button", name="Use a passkey").click()
    await expect(page.get_by_text("connected", exact=True)).to_be_visible()
    await out()
    await fill_in(door(page), email)
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Code of your app, or a recovery code").first).to_be_focused()
    await page.keyboard.type(code)
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("connected", exact=True)).to_be_visible()
    await expect(mine.get_by_text("9 codes left.")).to_be_visible()
    await mine.get_by_role("button", name="Remove: Laptop").click()
    await expect(mine.get_by_text("You have none.")).to_be_visible()
    await expect(mine.get_by_text("Your password alone logs you in.")).to_be_visible()


async def grow_stale(world: World, email: str) -> None:
    """As if the last factor had been shown an hour ago."""
    database = await asyncpg.connect(world.info["database_url"])
    await database.execute(
        "UPDATE sessions SET auth_time = now() - interval '1 hour' FROM users u WHERE u.email = $1 AND subject = u.id",
        email,
    )
    await database.close()


async def test_what_is_sensitive_asks_for_a_factor_again_and_goes_on(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    await with_an_authenticator(page, one_worker)
    email, mine = await register(page, "Otto"), page.locator("#factors")
    await grow_stale(one_worker, email)
    await mine.get_by_role("button", name="Add a passkey").click()
    await expect(mine.get_by_role("heading", name="Is it still you?")).to_be_focused()
    await mine.get_by_label("Password").fill("not the password of Otto")
    await page.keyboard.press("Enter")
    await expect(mine.get_by_role("alert").filter(has_text="is wrong")).to_be_visible()
    await mine.get_by_label("Password").fill(PASSWORD)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Your recovery codes")).to_be_focused()
    await expect(mine.get_by_role("heading", name="Is it still you?")).to_be_hidden()
    await expect(page.get_by_text("connected", exact=True)).to_be_visible()  # the cookie changed, the socket stays
    await grow_stale(one_worker, email)
    await page.get_by_text("Change my password").click()
    form = page.locator("#change-password")
    await form.get_by_label("Current password").fill(PASSWORD)
    await form.get_by_label("New password").fill("another walk along the river 5")
    await page.keyboard.press("Enter")
    await mine.get_by_role("button", name="Use a passkey").click()
    await expect(page.locator("#self-note")).to_contain_text("Your password is changed")
    await grow_stale(one_worker, email)
    await mine.get_by_role("button", name="Remove: My passkey").click()
    await mine.get_by_role("button", name="Leave it").click()
    await expect(mine.get_by_role("alert").filter(has_text="Nothing was done.")).to_be_visible()
    await mine.get_by_role("button", name="Remove: My passkey").click()
    await mine.get_by_role("button", name="Use a passkey").click()
    await expect(mine.get_by_text("The passkey is removed.")).to_be_visible()
    await expect(mine.get_by_text("You have none.")).to_be_visible()


async def test_an_admin_removes_lost_factors_and_their_owner_is_logged_out(one_worker: World, people: People) -> None:
    owner, admin = await people.page(one_worker), await people.page(one_worker)
    await with_an_authenticator(owner, one_worker)
    email = await register(owner, "Quin")
    await owner.get_by_role("button", name="Add a passkey").click()
    await expect(owner.get_by_role("heading", name="Your recovery codes")).to_be_focused()
    await log_in_as_admin(admin, one_worker)
    await choose(admin, email)
    await do(admin, "Remove lost factors", "phone lost")
    await expect(admin.locator("#person-note")).to_have_text("Done.")
    await expect(owner.get_by_text("Reason: phone lost.")).to_be_visible()
    await expect(owner.locator("#recovery-codes li")).to_have_count(0)
    await owner.get_by_role("button", name="Log in again").click()
    await log_in(owner, email)


async def test_an_app_is_turned_on_by_its_code_and_off_again(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    email, mine = await register(page, "Pia"), page.locator("#factors")
    await mine.get_by_role("button", name="Turn it on").click()
    await expect(mine.get_by_role("img", name="QR code of the secret below")).to_be_visible()
    secret = await mine.locator("#totp-secret").text_content() or ""
    step = int(time.time()) // 30
    app = pyotp.TOTP(secret)
    await expect(mine.get_by_label("Code", exact=True)).to_be_focused()
    await page.keyboard.type(app.generate_otp(step))
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Your recovery codes")).to_be_focused()
    codes = await mine.locator("#recovery-codes li").all_text_contents()
    await expect(mine.locator("#totp-secret")).to_be_empty()
    await page.get_by_role("button", name="Log out").click()
    await expect(page.locator("#recovery-codes li")).to_have_count(0)
    await page.get_by_role("button", name="Log in again").click()
    await fill_in(door(page), email)
    await page.get_by_role("button", name="Continue").click()
    await expect(door(page).get_by_label("Code of your app, or a recovery code")).to_be_focused()
    await expect(door(page).get_by_role("button", name="Use a passkey")).to_be_hidden()
    await page.keyboard.type("000000")
    await page.keyboard.press("Enter")
    await expect(
        door(page).get_by_role("alert").filter(has_text="password or code is wrong: this code is not good")
    ).to_be_visible()
    await door(page).get_by_label("Code of your app, or a recovery code").fill(app.generate_otp(step + 1))
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("connected", exact=True)).to_be_visible()
    await mine.get_by_role("button", name="Make new ones").click()
    await expect(mine.locator("#recovery-codes li")).to_have_count(10)
    fresh = await mine.locator("#recovery-codes li").all_text_contents()
    assert not {*codes} & {*fresh}
    await mine.get_by_label("Code of the app, or a recovery code").fill(fresh[0])
    await page.keyboard.press("Enter")
    await expect(mine.get_by_text("Your password alone logs you in.")).to_be_visible()


async def test_a_browser_that_is_trusted_is_asked_for_the_password_alone(one_worker: World, people: People) -> None:
    context = await people.context()
    page, elsewhere = await people.page(one_worker, context), await people.page(one_worker)
    email, mine = await register(page, "Rosa"), page.locator("#factors")
    await mine.get_by_role("button", name="Turn it on").click()
    await expect(page.locator("#totp-secret")).not_to_be_empty()
    app = pyotp.TOTP(await page.locator("#totp-secret").text_content() or "")
    await page.keyboard.type(app.now())
    await page.keyboard.press("Enter")
    await expect(page.locator("#recovery-codes li")).to_have_count(10)
    code = await page.locator("#recovery-codes li").first.text_content() or ""
    await page.get_by_role("button", name="Log out").click()
    await page.get_by_role("button", name="Log in again").click()
    await fill_in(door(page), email)
    await page.keyboard.press("Enter")
    await door(page).get_by_label("Code of your app, or a recovery code").fill(code)
    await door(page).get_by_label("ask it for no second factor for 30 days").check()
    await door(page).get_by_role("button", name="Log in").click()
    await expect(page.get_by_text("connected", exact=True)).to_be_visible()
    await page.get_by_role("button", name="Log out").click()
    await page.get_by_role("button", name="Log in again").click()
    await log_in(page, email)
    await fill_in(door(elsewhere), email)
    await elsewhere.keyboard.press("Enter")
    await expect(door(elsewhere).get_by_label("Code of your app, or a recovery code")).to_be_focused()


async def test_an_admin_pages_through_the_people_bans_and_lets_in_again(one_worker: World, people: People) -> None:
    owner, admin, prefix = await people.page(one_worker), await people.page(one_worker), uuid.uuid4().hex[:12]
    await asyncio.gather(*(one_worker.register(f"{prefix}-{n:02}@example.org") for n in range(21)))
    await log_in_as_admin(admin, one_worker)
    await admin.get_by_label("Address begins with").fill(prefix)
    await admin.keyboard.press("Enter")
    rows = admin.locator("#people-rows tr")
    await expect(rows).to_have_count(20)
    await admin.locator("#people-more").click()
    await expect(rows).to_have_count(21)
    await expect(admin.locator("#people-more")).to_be_hidden()
    email = await register(owner, "Sven")
    await choose(admin, email)
    await do(admin, "Ban", "spam")
    await expect(owner.get_by_text("This account is disabled.")).to_be_visible()
    await expect(rows).to_contain_text("banned until")
    await expect(admin.locator("#person-title")).to_be_focused()
    await do(admin, "Lift the ban", "it was no spam")
    await expect(rows).to_contain_text("may come in")
    await owner.get_by_role("button", name="Log in again").click()
    await log_in(owner, email)
    await do(admin, "Disable", "spam after all")
    await expect(owner.get_by_text("This account is disabled.")).to_be_visible()
    await admin.get_by_label("Who?").select_option("Not disabled")
    await admin.keyboard.press("Enter")
    await admin.locator("#people-filter").get_by_role("button").click()
    await expect(admin.get_by_text("There is nobody like that.")).to_be_visible()


async def test_an_admin_gives_out_what_is_kept_of_somebody_and_deletes_them(one_worker: World, people: People) -> None:
    owner, admin = await people.page(one_worker), await people.page(one_worker)
    email = await register(owner, "Tess")
    await log_in_as_admin(admin, one_worker)
    await choose(admin, email)
    async with admin.expect_download() as download:
        await do(admin, "Export", "she asks for it")
    kept = json.loads((await (await download.value).path()).read_bytes())
    assert kept["profile"]["email"] == email
    await do(admin, "Delete", "she asks for it")
    await expect(owner.get_by_text("This account was deleted")).to_be_visible()
    await expect(admin.locator("#people-rows tr")).to_have_count(0)
    await expect(admin.locator("#person")).to_be_hidden()
    assert email not in await admin.locator("#people-rows").inner_html()


async def test_an_admin_acts_for_somebody_and_everyone_sees_it(one_worker: World, people: People) -> None:
    owner, admin = await people.page(one_worker), await people.page(one_worker)
    email = await register(owner, "Uma")
    await log_in_as_admin(admin, one_worker)
    await choose(admin, email)
    await do(admin, "Act for them", "a bug in her room")
    banner = admin.locator("#acting")
    await expect(admin.locator("#acting-title")).to_be_focused()
    await expect(banner).to_contain_text("You act for Uma. You are Admin;")
    await expect(banner).to_contain_text("Reason: a bug in her room.")
    await expect(admin.locator("#who")).to_have_text("Uma")
    await expect(admin.locator("#admin")).to_be_hidden()
    await expect(admin.get_by_text("Change my password")).to_be_hidden()
    await expect(owner.locator("#present")).to_contain_text("Uma (you) (an admin acts here)")
    await owner.get_by_role("button", name="Refresh").first.click()
    await expect(owner.locator("#sessions")).to_contain_text("an admin acts here")
    await admin.get_by_label("Message", exact=True).fill("looking at it")
    await admin.keyboard.press("Enter")
    await expect(owner.get_by_role("log")).to_contain_text("Uma: looking at it")
    await banner.get_by_role("button", name="Be yourself again").click()
    await expect(admin.locator("#who")).to_have_text("Admin")
    await expect(banner).to_be_hidden()
    await expect(admin.get_by_text("connected", exact=True)).to_be_visible()
    await expect(owner.locator("#present")).not_to_contain_text("an admin acts here")
    await owner.get_by_role("button", name="Refresh").first.click()
    await expect(owner.locator("#sessions")).not_to_contain_text("an admin acts here")
    await choose(admin, email)
    await do(admin, "Act for them", "once more")
    await expect(admin.locator("#who")).to_have_text("Uma")
    await owner.get_by_role("button", name="Refresh").first.click()
    await owner.locator("#sessions tr").filter(has_text="an admin acts here").get_by_role("button").click()
    await expect(admin.locator("#who")).to_have_text("Admin")  # she has had enough of it
    await admin.get_by_label("Action").fill("user.impersonated")
    await admin.keyboard.press("Enter")
    await expect(admin.locator("#audit-rows tr").first).to_contain_text("once more")


async def test_an_admin_sees_why_a_job_was_given_up_tries_it_again_and_drops_it(
    one_worker: World, people: People
) -> None:
    admin = await people.page(one_worker)
    database = await asyncpg.connect(one_worker.info["database_url"])
    await database.execute(
        "INSERT INTO jobs (kind, payload, attempts, error, dead_at) VALUES ('test.gone', 'null', 7, 'it rained', now())"
    )
    await database.close()
    await log_in_as_admin(admin, one_worker)
    row = admin.locator("#jobs-rows tr").filter(has_text="test.gone")
    await admin.get_by_label("Which?").select_option("Given up")
    await expect(row).to_have_text(re.compile(r"given up\s*7\s*it rained"))
    await row.get_by_role("button", name="Retry: test.gone").click()
    await expect(row).to_have_count(0)
    await admin.get_by_label("Which?").select_option("Waiting")
    await expect(row).to_contain_text("due ")
    await row.get_by_role("button", name="Drop: test.gone").click()
    await expect(admin.locator("#jobs-note")).to_have_text("Done.")
    await expect(row).to_have_count(0)


async def test_an_admin_adds_a_webhook_sees_its_secret_once_tries_and_deletes_it(
    one_worker: World, people: People
) -> None:
    heard: asyncio.Queue[tuple[CIMultiDictProxy[str], bytes]] = asyncio.Queue()

    async def hear(request: web.BaseRequest) -> web.Response:
        heard.put_nowait((request.headers, await request.read()))
        return web.Response()

    admin = await people.page(one_worker)
    await log_in_as_admin(admin, one_worker)
    add = admin.locator("#webhook-new")
    await add.get_by_label("Address").fill("http://192.168.0.1/")
    await add.get_by_role("button", name="Add").click()
    await expect(add.get_by_role("alert")).to_contain_text("url: the URL begins with https://")
    async with RawTestServer(hear) as server:
        url = str(server.make_url("/hook"))
        await add.get_by_label("Address").fill(url)
        await add.get_by_label("Events").fill("session.*  user.disabled")
        await admin.keyboard.press("Enter")
        secret = await told_secret(admin)
        assert secret.startswith("whsec_")
        row = admin.locator("#webhooks-rows tr").filter(has_text=url)
        await expect(row).to_contain_text("session.* user.disabled")
        await row.get_by_role("button", name=f"Test: {url}").click()
        headers, body = await asyncio.wait_for(heard.get(), 10)
        await row.get_by_role("button", name=f"Replay: {url}").click()
        await admin.get_by_role("dialog").get_by_role("button", name="Replay").click()
        await expect(admin.locator("#webhooks-note")).to_contain_text(re.compile(r"[1-9]\d* events? to be sent again"))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    said = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, said, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    await row.get_by_role("button", name=f"Test: {url}").click()
    late = admin.locator("#deliveries-rows tr").filter(has_text=url).filter(has_text="cannot be reached").first
    async with asyncio.timeout(10):
        while not await late.count():
            await admin.locator("#webhooks-again").click()
    await late.get_by_role("button", name="Drop").click()
    await row.get_by_role("button", name=f"Delete: {url}").click()
    await expect(row).to_have_count(0)


async def test_what_comes_again_by_itself_offers_no_drop(one_worker: World, people: People) -> None:
    admin = await people.page(one_worker)
    await log_in_as_admin(admin, one_worker)
    row = admin.locator("#jobs-rows tr").filter(has_text="audit.seal")
    await expect(row).to_contain_text("again and again")
    await expect(row.get_by_role("button")).to_have_count(1)
    await row.get_by_role("button", name="Retry").click()
    await expect(admin.locator("#jobs-note")).to_have_text("Done.")


async def test_an_admin_makes_a_key_rotates_it_and_revokes_it(one_worker: World, people: People) -> None:
    admin, name = await people.page(one_worker), f"billing-{uuid.uuid4().hex[:8]}"
    await log_in_as_admin(admin, one_worker)
    section, form = admin.locator("#keys"), admin.locator("#key-new")
    await section.get_by_label("Name of a new service account").fill(name)
    await admin.keyboard.press("Enter")
    await expect(admin.locator("#service-note")).to_contain_text("It is made")
    await form.get_by_label("Name of a new key").fill(f"Invoices of {name}")
    await form.get_by_label("Scopes").fill("user:read")
    await admin.keyboard.press("Enter")
    await expect(form.get_by_role("alert")).to_contain_text("did you mean 'users:read'?")
    await form.get_by_label("Scopes").fill("users:read")
    await expect(form.get_by_label("Whose?")).to_have_value(name)
    await admin.keyboard.press("Enter")
    first = await told_secret(admin)
    row = admin.locator("#keys-rows tr").filter(has_text=f"Invoices of {name}")
    await expect(row).to_contain_text(re.compile(rf"{name}\s*users:read\s*good until"))

    async def good(secret: str) -> bool:
        return (await one_worker.call("GET", "/admin/users?limit=1", X_API_Key=secret))[0] == 200

    await row.get_by_role("button", name="Rotate").click()
    await admin.get_by_role("dialog").get_by_label("Hours").fill("0")
    await admin.keyboard.press("Enter")
    second = await told_secret(admin)
    assert (await good(first), await good(second)) == (False, True)
    account = admin.locator("#services-rows tr").filter(has_text=name)
    await account.get_by_role("button", name="Disable").click()
    await answer(admin, "Disable", "nobody pays")
    await expect(account).to_contain_text("disabled")
    assert not await good(second)
    await row.get_by_role("button", name="Revoke").click()
    await admin.get_by_role("dialog").get_by_role("button", name="Leave it").click()
    await expect(admin.locator("#keys-note")).to_have_text("Nothing was done.")
    await row.get_by_role("button", name="Revoke").click()
    await answer(admin, "Revoke")
    await expect(row).to_have_count(0)
    await section.get_by_label("Show those that were revoked").check()
    await expect(row).to_contain_text("revoked")


async def test_nothing_of_an_admins_page_is_left_after_the_logout(one_worker: World, people: People) -> None:
    page, person = await people.page(one_worker), await one_worker.register()
    await one_worker.call("POST", "/auth/password/forgot", {"email": person.email})
    link = (await letter_to(one_worker, (await one_worker.admin()).access, person.email))["link"]
    await log_in_as_admin(page, one_worker)
    await expect(page.locator("#letters-list")).to_contain_text(link)
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_text("You logged out.")).to_be_visible()
    left = await page.content()
    for what in (link, person.email, person.id, one_worker.info["admin"]["email"], "Admin came in"):
        assert what not in left


async def test_an_admin_counts_revokes_and_reads_the_receipt(one_worker: World, people: People) -> None:
    victim, admin = await people.page(one_worker), await people.page(one_worker)
    email = await register(victim, "Eve")
    await log_in_as_admin(admin, one_worker)
    user = (await one_worker.login(email)).id
    await admin.get_by_label("A user").check()
    await admin.get_by_label("User id").fill(user)
    await admin.get_by_label("Reason").fill("account taken over")
    await admin.get_by_role("button", name="Count first").click()
    await expect(admin.locator("#dry-text")).to_contain_text("This ends 2 sessions of 1 user and closes 1 connection.")
    await admin.get_by_role("button", name="Revoke", exact=True).click()
    await expect(victim.get_by_text("Reason: account taken over.")).to_be_visible()
    await expect(admin.locator("#receipt-state")).to_contain_text("Confirmed by every node")
    await expect(admin.locator("#receipt-facts")).to_contain_text(re.compile(r"Connections closed\s*1"))
    await expect(admin.locator("#receipt-nodes tr").first).to_be_visible()


async def test_everyone_else_is_revoked_and_the_admin_stays(one_worker: World, people: People) -> None:
    others, admin = await people.page(one_worker), await people.page(one_worker)
    await register(others, "Finn")
    await log_in_as_admin(admin, one_worker)
    await admin.get_by_label("Everyone else").check()
    await admin.get_by_label("Reason").fill("incident")
    await admin.get_by_role("button", name="Count first").click()
    await admin.get_by_role("button", name="Revoke", exact=True).click()
    await expect(others.get_by_text("Reason: incident.")).to_be_visible()
    await expect(admin.locator("#receipt-state")).to_contain_text("Confirmed")
    await expect(admin.get_by_text("connected", exact=True)).to_be_visible()


async def test_the_page_works_from_the_keyboard_and_names_its_controls(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    await expect(door(page).get_by_label("E-mail")).to_be_focused()
    await page.keyboard.type("keyboard@example.org")
    await page.keyboard.press("Tab")
    await page.keyboard.type("wrong password here")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert").filter(has_text="wrong")).to_be_visible()
    await the_names_are_right(page)
    await log_in_as_admin(page, one_worker)
    await expect(page.locator("#jobs-rows tr").first).to_be_visible()
    await the_names_are_right(page)


async def the_names_are_right(page: Page) -> None:
    """Every control has a name, no id stands twice, and what refers to one finds it."""
    wrong = await page.evaluate(
        """() => {
          const all = (what) => [...document.querySelectorAll(what)];
          const name = (e) => e.labels?.[0]?.textContent.trim() || e.getAttribute("aria-label") || e.textContent.trim();
          const controls = all("input, button, select, summary, a, [tabindex='0']");
          const ids = all("[id]").map((e) => e.id);
          const told = all("[aria-labelledby], [aria-describedby]").flatMap((e) =>
            [e.getAttribute("aria-labelledby"), e.getAttribute("aria-describedby")].filter(Boolean));
          return [
            ...controls.filter((e) => !name(e) && !e.labels?.length).map((e) => e.outerHTML),
            ...ids.filter((id, at) => ids.indexOf(id) !== at),
            ...told.filter((id) => !ids.includes(id)),
          ];
        }"""
    )
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_can_be_read_in_both_colour_schemes(one_worker: World, people: People, scheme: str) -> None:
    page = await people.page(one_worker, await people.context(scheme))
    await expect(page.get_by_role("heading", name="Come in")).to_be_visible()
    ratio = await page.evaluate(
        """() => {
          const part = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          const lum = (c) => {
            const [r, g, b] = c.match(/\\d+/g).map((v) => part(v / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const card = getComputedStyle(document.getElementById("door"));
          const text = getComputedStyle(document.querySelector(".narrow .quiet"));
          const [ground, ink] = [lum(card.backgroundColor), lum(text.color)];
          return (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
        }"""
    )
    assert ratio >= 4.5


async def test_the_api_page_shows_every_route(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    await page.goto(one_worker.url + "/docs")
    await page.get_by_label("Find a route").fill("post /admin/revocations")
    fold = page.locator("details:visible")
    await expect(fold).to_have_count(1)
    await fold.locator("summary").click()
    await expect(fold).to_contain_text("confirm_required")


async def test_what_was_typed_before_the_routes_came_finds_no_less(one_worker: World, people: People) -> None:
    page, typed = await people.page(one_worker), asyncio.Event()

    async def hold(route: Route) -> None:
        await typed.wait()
        await route.continue_()

    await page.route("**/openapi.json", hold)
    await page.goto(one_worker.url + "/docs")
    await page.get_by_label("Find a route").fill("post /admin/revocations")
    typed.set()
    await expect(page.locator("details")).not_to_have_count(0)
    await expect(page.locator("details:visible")).to_have_count(1)


async def test_a_telephone_shows_it_without_scrolling_sideways(one_worker: World, people: People) -> None:
    page = await people.page(one_worker)
    await page.set_viewport_size({"width": 360, "height": 740})
    await register(page, "Gail")
    await expect(page.locator("#sessions tr")).to_have_count(1)
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    await page.get_by_role("button", name="Log out").click()
    await page.get_by_role("button", name="Log in again").click()
    await log_in_as_admin(page, one_worker)
    await page.locator("#jobs-rows code").first.evaluate("(code) => code.textContent = 'a.kind.of.job.'.repeat(5)")
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
