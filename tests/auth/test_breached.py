"""The list of stolen passwords: looked up in a file, line by line of any length, and refused where it is none."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.breached import Breached
from config.errors import Failure


def digest(password: str) -> str:
    return hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()


def write(path: Path, counts: dict[str, int], end: str = "\r\n", *, last: bool = True) -> Breached:
    text = end.join(
        f"{digest(password)}:{count}" for password, count in sorted(counts.items(), key=lambda i: digest(i[0]))
    )
    path.write_bytes((text + (end if last else "")).encode())
    return Breached(str(path))


@given(
    st.dictionaries(st.text("abc", max_size=5), st.integers(1, 10**11), min_size=1, max_size=60),
    st.lists(st.text("abc", max_size=5), max_size=20),
    st.sampled_from(["\r\n", "\n"]),
    st.booleans(),
)
def test_a_password_is_on_the_list_exactly_when_its_line_is(
    tmp_path_factory: pytest.TempPathFactory, listed: dict[str, int], others: list[str], end: str, last: bool
) -> None:
    breached = write(tmp_path_factory.mktemp("list") / "list", listed, end, last=last)
    for password in (*listed, *others):
        assert (password in breached) is (password in listed), password
    breached.close()


def test_without_a_list_nothing_is_on_it() -> None:
    assert "password" not in Breached("")


@pytest.mark.parametrize(
    "text", ["", "password\n", f"{digest('a')}\n", f"{digest('b')}:1\n{digest('a')}:1\n", f"{'0' * 32}:1\n"]
)
def test_what_is_no_such_list_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(Failure, match="no sorted lines"):
        Breached(str(tmp_path / "list"))
    with pytest.raises(Failure, match="No such file"):
        Breached(str(tmp_path / "none"))


def test_a_damaged_line_is_no_line_and_nothing_worse(tmp_path: Path) -> None:
    breached = write(tmp_path / "list", dict.fromkeys((f"password {n}" for n in range(50)), 1))
    raw = bytearray((tmp_path / "list").read_bytes())
    raw[len(raw) // 2 - 300 : len(raw) // 2 + 300] = b"x" * 600
    (tmp_path / "list").write_bytes(raw)
    assert sum(f"password {n}" in breached for n in range(50)) < 50
