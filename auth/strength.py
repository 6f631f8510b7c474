"""How strong a new password is, in one word. An estimate, for whoever is about to choose one; nothing is refused by it.

    weak     would be refused
    fair     fewer than STRONG bits: good where guesses are counted, as here, and not where a stolen hash is tried
    strong   more

The password is taken apart as `common_passwords` does. A piece of more than one character (a word that everybody knows,
a run, a year) counts PIECE bits; a single character counts the logarithm of how many there are of the kinds that occur.
"""

import math
from typing import Final, Literal

from auth.common_passwords import pieces

Strength = Literal["weak", "fair", "strong"]

STRONG: Final = 70.0
PIECE: Final = 10.0
_LONGEST: Final = 63
_KINDS: Final = ((str.isdigit, 10), (str.islower, 26), (str.isupper, 26), (str.isascii, 33), (str.isprintable, 100))


def strength(password: str) -> Strength:
    """Of a password that is acceptable."""
    return "strong" if bits(password[:_LONGEST]) >= STRONG else "fair"


def bits(password: str) -> float:
    """What it would take to guess it, as a power of two."""
    alphabet = sum(size for is_one, size in _KINDS if any(_kind(c) == size and is_one(c) for c in password))
    text = "".join(password.split())
    many = pieces(text.casefold())
    singles = sum(1 for size in many if size == 1)
    return singles * math.log2(max(2, alphabet)) + (len(many) - singles) * PIECE


def _kind(character: str) -> int:
    return next((size for is_one, size in _KINDS if is_one(character)), 0)
