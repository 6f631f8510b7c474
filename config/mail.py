"""Mail on its way out: over SMTP, or into a folder for development, which is read here too. What a letter says is its
room's affair.

    Undeliverable    nobody will ever get it there: the address is refused, or the content
    anything else    not now: the server is away, busy, or does not know us; try again

Errors name the server's code and never the address, as they are logged.
"""

import contextlib
import email
import os
import re
import time
from collections.abc import Iterator
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from pathlib import Path
from typing import Final, NamedTuple

import aiosmtplib

from config.settings import Mail

TIMEOUT: Final = 20.0
KEPT: Final = 200
"""Letters that stay in the folder, the newest ones."""

_NAME = re.compile(r"(\d{20})-([\w-]{1,64})\.eml")
_LINK = re.compile(r"^https?://\S+$", re.MULTILINE)
_ADDRESS = re.compile(r"[^\s@\"(),:;<>\[\\\]]+@[^\s@\"(),:;<>\[\\\]]+")


class Undeliverable(Exception):
    """Trying again is of no use."""


class MailFailed(Exception):
    """Not now."""


class Letter(NamedTuple):
    """What is sent. `id` is the same whenever the same letter is sent again: receivers drop the second one by it."""

    id: str
    to: str
    subject: str
    text: str
    html: str


class Mailer:
    """Sends letters as `mail` in the settings says."""

    def __init__(self, settings: Mail) -> None:
        self._settings = settings

    async def send(self, letter: Letter) -> None:
        """Return when the server has taken it. Undeliverable or MailFailed."""
        message = self._message(letter)
        if self._settings.folder:
            _keep(Path(self._settings.folder), letter.id, bytes(message))
            return
        await self._over_smtp(message)

    def _message(self, letter: Letter) -> EmailMessage:
        sender = self._settings.sender
        message = EmailMessage(policy=SMTP if letter.to.isascii() else SMTPUTF8)
        if not _ADDRESS.fullmatch(letter.to):
            raise Undeliverable("the address is none")
        local, _, domain = letter.to.partition("@")
        message["From"], message["To"] = sender, Address(username=local, domain=domain)
        message["Subject"] = " ".join(letter.subject.split())
        message["Date"] = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime())
        message["Message-ID"] = f"<{letter.id}@{sender.rpartition('@')[2].rstrip('>')}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday answers
        message.set_content(letter.text)
        message.add_alternative(letter.html, subtype="html")
        return message

    async def _over_smtp(self, message: EmailMessage) -> None:
        mail = self._settings
        try:
            await aiosmtplib.send(
                message,
                hostname=mail.smtp_host,
                port=mail.smtp_port,
                username=mail.smtp_username or None,
                password=mail.smtp_password.get_secret_value() or None,
                use_tls=mail.smtp_tls == "implicit",
                start_tls=mail.smtp_tls == "starttls",
                timeout=TIMEOUT,
            )
        except aiosmtplib.SMTPRecipientsRefused as error:
            codes = [refused.code for refused in error.recipients]
            raise _failure("the recipient", codes[0] if codes else 0) from None
        except aiosmtplib.SMTPDataError as error:
            raise _failure("the content", error.code) from None
        except aiosmtplib.SMTPNotSupported:
            raise Undeliverable("the server cannot send to such an address") from None
        except aiosmtplib.SMTPResponseException as error:
            raise MailFailed(f"{type(error).__name__} {error.code}") from None
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise MailFailed(f"{type(error).__name__} at {mail.smtp_host}:{mail.smtp_port}") from None


def _failure(what: str, code: int) -> Exception:
    """RFC 5321 4.2.1: 4yz may pass another time, 5yz never will."""
    return (Undeliverable if code >= 500 else MailFailed)(f"the server refused {what} with {code}")


def _keep(folder: Path, id: str, message: bytes) -> None:
    """One file a letter, by time. Written aside and renamed, so that nobody reads a half."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = folder / f".{id}"
    part.write_bytes(message)
    part.chmod(0o600)
    part.rename(folder / f"{time.time_ns():020}-{id}.eml")
    for old in sorted(name for name in os.listdir(folder) if name.endswith(".eml"))[:-KEPT]:
        (folder / old).unlink(missing_ok=True)


class Kept(NamedTuple):
    """A letter of the folder. `at` in seconds since 1970; `link` is the one that stands on a line of its own, or ""."""

    id: str
    to: str
    subject: str
    at: float
    text: str
    link: str


def kept(folder: Path, most: int) -> list[Kept]:
    """The newest letters in the folder, newest first. Files that no Mailer wrote are passed over."""
    try:
        names = sorted((name for name in os.listdir(folder) if _NAME.fullmatch(name)), reverse=True)
    except FileNotFoundError:  # nothing was written yet
        return []
    return [*_read(folder, names[:most])]


def _read(folder: Path, names: list[str]) -> Iterator[Kept]:
    for name in names:
        at, id = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
        with contextlib.suppress(FileNotFoundError):  # the oldest may go meanwhile
            message = email.message_from_bytes((folder / name).read_bytes(), policy=SMTPUTF8)
            body = message.get_body(("plain",))
            text = body.get_content().replace("\r\n", "\n") if body is not None else ""
            link = _LINK.search(text)
            yield Kept(id, str(message["To"]), str(message["Subject"]), int(at) / 1e9, text, link[0] if link else "")
