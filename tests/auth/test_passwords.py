"""Passwords: every text works, none breaks anything, old forms are renewed, the pool sheds what it cannot take."""

import asyncio
import os
import sys
import threading
import time
import unicodedata

import bcrypt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from auth.common_passwords import too_common
from auth.passwords import MAX_BYTES, Hasher, HashPool, Passwords, Verdict, acceptable, bounded
from config.http import Problem
from config.settings import Auth

PEPPER = b"a pepper of more than thirty-two bytes"
hasher = Hasher(4, PEPPER)


def refused(field: str, password: str, min_length: int = 12) -> str:
    with pytest.raises(Problem) as caught:
        acceptable(field, password, min_length)
    assert caught.value.details.status == 422
    [error] = caught.value.details.errors
    assert error.field == field
    return error.message


def test_sec_01_length_counts_code_points_not_bytes() -> None:
    assert refused("password", "é" * 11) == "at least 12 characters"
    assert acceptable("password", "é" * 12, 12) == "é" * 12
    assert refused("password", "e\u0301" * 11) == "at least 12 characters"  # counted in NFC


def test_sec_02_sixty_four_emoji_are_a_password_and_its_end_matters() -> None:
    password = "\N{OWL}" * 64
    stored = hasher.hash(acceptable("password", password, 12))
    assert len(password.encode()) == 256
    assert hasher.check(stored, password).right
    assert not hasher.check(stored, password[:-1] + "\N{EAGLE}").right
    long = "x" * 72
    stored = hasher.hash(long + "a")
    assert not hasher.check(stored, long + "b").right
    assert not hasher.check(stored, long).right


def test_sec_03_more_than_1024_bytes_and_nul_are_refused() -> None:
    assert refused("password", "x" * (MAX_BYTES + 1)) == "at most 1024 bytes"
    assert refused("password", "é" * 513) == "at most 1024 bytes"
    assert refused("password", "long enough\x00 to be one") == "no NUL characters"
    assert bounded("password", "x" * MAX_BYTES) == "x" * MAX_BYTES
    assert bounded("password", "") == ""  # wrong, and not malformed


def test_sec_03_a_damaged_hash_is_wrong_and_nothing_worse() -> None:
    good = hasher.hash("right")
    for stored in (
        "",
        "x",
        "$2b$12$",
        good[:-1],
        good + "x",
        "00000000" + good[8:],  # a pepper that nobody knows
        good[:8] + "$2b$31$" + good[15:],  # would take days
        good[:8] + "$2x$04$" + good[15:],
        good.replace("$2b$04$", "$2b$00$"),
        "é" * 68,
        "\x00" * 68,
    ):
        assert hasher.check(stored, "right") == Verdict(False), stored


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.text(max_size=70))
def test_no_stored_text_breaks_the_check(stored: str) -> None:
    assert hasher.check(stored, "right") == Verdict(False)


def test_sec_04_nfc_and_nfd_are_one_password() -> None:
    composed, decomposed = (unicodedata.normalize(form, "Größe über Ångström") for form in ("NFC", "NFD"))
    assert composed != decomposed
    stored = hasher.hash(acceptable("password", composed, 12))
    assert hasher.check(stored, bounded("password", decomposed)).right
    stored = hasher.hash(acceptable("password", decomposed, 12))
    assert hasher.check(stored, bounded("password", composed)).right


@pytest.mark.parametrize(
    "password",
    [
        *("password1234", "Passw0rd2024!", "P@$$w0rd 1234", "p a s s w o r d 1 2", "passwordpassword"),
        *(
            "123456789012",
            "987654321098",
            "qwertyuiop12",
            "poiuytrewq12",
            "1q2w3e4r5t6y",
            "zaq12wsx3edc",
            "abcdefghijkl",
        ),
        *("aaaaaaaaaaaa", "abcabcabcabc", "abcdabcdabcda", "x" * 63, "12" * 30),
        *("iloveyou1234", "Letmein!2025", "Summer2025!!", "administrator1", "liverpool2019", "trustno1trustno1"),
    ],
)
def test_sec_05_what_everybody_tries_first_is_refused_with_a_reason(password: str) -> None:
    with pytest.raises(Problem) as caught:
        acceptable("password", password, 12)
    assert caught.value.details.errors[0].message.startswith("not ")


@pytest.mark.parametrize(
    "password",
    [
        *(
            "alice1234567",
            "4l1c3 123456",
            "liddell12345",
            "wonderland!!!",
            "alice@wonderland.example",
        ),
        *("wardgate2026", "WARDGATE!alice"),
    ],
)
def test_sec_05_what_is_known_of_its_owner_makes_no_password(password: str) -> None:
    context = ("alice@wonderland.example", "Alice Liddell")
    with pytest.raises(Problem) as caught:
        acceptable("password", password, 12, context)
    assert "your e-mail address, your name" in caught.value.details.errors[0].message


@pytest.mark.parametrize(
    "password",
    [
        *(
            "correct horse battery staple",
            "another fine password",
            "Tr0ub4dor&3xyz",
            "xK9$mQ2!vB7n",
            "a long walk along the harbour 3",
        ),
        *(
            "alice likes the sea",
            "größe über ångström",
            "\U0001f512\U0001f511\U0001f6aa\U0001f3e0" * 2 + "dkfj",
            "x7Kq 4Gz 123 pw",
        ),
    ],
)
def test_sec_06_phrases_and_random_characters_pass(password: str) -> None:
    assert acceptable("password", password, 12, ("alice@example.org", "Alice")) == password


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.text(max_size=80), st.lists(st.text(max_size=20), max_size=2))
def test_no_password_breaks_the_judgement(password: str, context: list[str]) -> None:
    assert isinstance(too_common(password, context), str)


def test_judging_a_password_does_not_hold_the_loop() -> None:
    start = time.perf_counter()
    for text in ("aB3" * 341, "1qaz" * 256, "password" * 128, "ab" * 31 + "!", "qwertzuiop" * 6):
        too_common(text)
    assert time.perf_counter() - start < 0.1


def test_sec_08_an_old_cost_or_pepper_still_verifies_and_asks_for_a_new_form() -> None:
    old = Hasher(4, b"the pepper of yesterday, long enough")
    now = Hasher(5, PEPPER, previous=[b"the pepper of yesterday, long enough"])
    for stored in (old.hash("right"), Hasher(4, PEPPER).hash("right")):
        assert now.check(stored, "right") == Verdict(True, old=True)
        assert now.check(stored, "wrong") == Verdict(False)
    assert now.check(now.hash("right"), "right") == Verdict(True, old=False)


def test_a_wrong_pepper_was_logged_as_damaged_hashes() -> None:
    stored = hasher.hash("right")
    other = Hasher(4, b"another pepper, set by mistake")
    with capture_logs() as logs:
        assert other.check(stored, "right") == Verdict(False)
        assert other.check(stored[:-1], "right") == Verdict(False)
    events = [entry["event"] for entry in logs]
    assert events == ["password_pepper_unknown", "password_hash_damaged"]
    assert (logs[0]["id"], len(logs[0]["known_ids"])) == (stored[:8], 1)


def test_without_the_pepper_a_stolen_hash_is_worth_nothing() -> None:
    stored = hasher.hash("right")
    assert not Hasher(4, b"another pepper").check("0" * 8 + stored[8:], "right").right
    assert not bcrypt.checkpw(b"right", stored[8:].encode())


def test_nobody_costs_as_much_as_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []
    original = bcrypt.checkpw

    def counted(password: bytes, stored: bytes) -> bool:
        checked.append(stored[:7])
        return original(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    hasher.check(None, "guess")
    hasher.check(hasher.hash("right"), "guess")
    hasher.check("damaged", "guess")
    hasher.check("00000000" + hasher.hash("right")[8:], "guess")
    assert checked == [b"$2b$04$"] * 4


# -- the pool


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux only")
async def test_a_hash_takes_what_the_loop_leaves() -> None:
    pool = HashPool(threads=1, queue=1)
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    its = await pool.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert its > mine or mine == 19
    pool.close()


class Gate:
    """Work that begins, says so, and ends when it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self) -> str:
        self.begun.release()
        assert self.go.wait(10)
        return "done"


async def until_begun(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.begun.acquire, timeout=10)


async def freed(pool: HashPool) -> None:
    """Threads take jobs in order, so once this one is done every one before it is."""
    await pool.run(lambda: None)
    assert pool.taken == 0


async def test_a_full_pool_refuses_at_once_with_busy() -> None:
    pool, gate = HashPool(threads=1, queue=2), Gate()
    running = [asyncio.create_task(pool.run(gate)) for _ in range(3)]
    await until_begun(gate)
    with pytest.raises(Problem) as caught:
        await pool.run(gate)
    assert caught.value.code == "busy"
    assert caught.value.details.retry_after > 0
    assert pool.refused == 1
    gate.go.set()
    assert await asyncio.gather(*running) == ["done"] * 3
    await freed(pool)
    pool.close()


async def test_a_cancelled_waiter_leaks_no_slot() -> None:
    pool, gate = HashPool(threads=1, queue=2), Gate()
    running = asyncio.create_task(pool.run(gate))
    await until_begun(gate)
    waiting = [asyncio.create_task(pool.run(gate)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert pool.taken == 1  # what had not begun is gone at once
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert pool.taken == 1  # a thread is still busy with it
    gate.go.set()
    await freed(pool)
    assert await pool.run(lambda: "again") == "again"
    pool.close()


async def test_an_exception_leaks_no_slot_and_a_closed_pool_is_busy() -> None:
    pool = HashPool(threads=1, queue=1)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await pool.run(fail)
    await freed(pool)
    pool.close()
    with pytest.raises(Problem, match="busy"):
        await pool.run(fail)
    assert pool.taken == 0


async def test_sec_09_the_loop_stays_responsive_while_the_pool_is_full() -> None:
    passwords = Passwords(Auth(bcrypt_cost=10, hash_threads=1, hash_queue=4))
    jobs = [asyncio.create_task(passwords.hash("right")) for _ in range(5)]
    lags = []
    while not all(job.done() for job in jobs):
        start = time.perf_counter()
        await asyncio.sleep(0.002)
        lags.append(time.perf_counter() - start - 0.002)
    assert sorted(lags)[len(lags) // 2] < 0.05
    assert passwords.figures() == {"hash_queue": 0.0}
    passwords.close()
