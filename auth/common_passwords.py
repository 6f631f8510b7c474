"""Passwords that are among the first to be tried: a list of words, and how people lengthen them. Pure.

A password is taken apart into as few pieces as it can be: a common word (leet spelling too), a word of its context (the
owner's address and name, this service), a run (`1234`, `abcd`, `qwerty`, `aaaa`), a year, and single characters. FEW
pieces are few guesses, however many characters they are. Whole phrases pass: their words are not on the list. What
lists of breached passwords hold beyond that `breached` knows.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

FEW = 4
_RUN = 3
_SHORTEST_CONTEXT = 4
_ROWS = ("1234567890", "qwertzuiop", "qwertyuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm", "azertyuiop", "qsdfghjklm")
_COLUMNS = tuple(
    line
    for down in ("1qaz", "2wsx", "3edc", "4rfv", "5tgb", "6yhn", "7ujm", "1q2w3e4r5t6y7u8i9o0p", "a1b2c3d4e5f6g7h8i9j0")
    for line in (down, down[::-1])
)
_LONGEST = 63
"""Longer ones are not judged: nobody tries these first, and judging takes time on the loop."""
_LEET = str.maketrans("0134578@$!", "oieastbasi")
_YEAR = re.compile(r"(?:19|20)\d\d")

_WORDS = frozenset(
    """
    password passwords passwort kennwort passwd pass pwd word motdepasse contrasena senha parola haslo heslo
    wachtwoord letmein login logon signin access open opensesame sesame enter please changeme change default
    temp temporary new old admin administrator root user guest test tester testing demo sample example
    system server private public secret geheim security secure safe lock key master superuser supervisor
    manager office work company business welcome willkommen bienvenue hello hallo hola bonjour ciao goodbye
    thankyou whatever nothing trustno trustme iloveyou love loveme lovely lover liebe schatz amour teamo
    babygirl baby angel princess prince queen king family mother father mama papa sister brother friend
    friends forever heaven jesus christ god bless faith freedom monkey dragon tiger lion eagle falcon
    panther wolf bear horse dolphin butterfly bunny kitty cat dog puppy fish shadow sunshine sunflower
    flower rainbow star stars moon sun soleil summer sommer winter spring autumn herbst january february
    march april may june july august september october november december monday tuesday wednesday thursday
    friday saturday sunday weekend holiday christmas football fussball futbol soccer baseball basketball
    hockey tennis golf yankees lakers cowboys steelers liverpool arsenal chelsea barcelona realmadrid
    juventus bayern borussia manchester united superman batman spiderman ironman starwars pokemon pikachu
    naruto matrix gandalf hobbit potter harry minecraft fortnite mario zelda sonic nintendo playstation xbox
    computer laptop internet windows linux google apple facebook instagram samsung iphone android microsoft
    amazon michael jordan jennifer michelle charlie daniel thomas jessica ashley andrew hunter robert
    matthew joshua anthony william nicole amanda hannah samantha elizabeth alexander maria anna david john
    james george peter ginger pepper cookie chocolate cheese banana orange cherry lemon coffee pizza beer
    whiskey red green blue yellow purple black white silver gold golden diamond mustang ferrari porsche
    mercedes harley corvette camaro toyota honda london paris berlin newyork madrid roma moscow tokyo
    america canada germany france italia brasil killer ranger thunder phoenix maverick buster maggie tigger
    bailey sparky snoopy mickey metallica nirvana slipknot eminem beatles money cash lucky happy smile cool
    big bad boy girl man abc qwerty azerty qwertz asdf zxcvbn fuckyou one two three four five six seven
    eight nine ten zero my the and you your i
    """.split()  # noqa: SIM905 - a list of two hundred quoted words is no better to read
)


def too_common(password: str, context: Iterable[str] = ()) -> str:
    """Why nobody should have this password, for the person who chose it; "" for nothing against it."""
    text = "".join(password.casefold().split())
    if len(text) > _LONGEST:
        return ""
    if text.isascii() and _repeats(text):
        return "not the same over and over"
    if _pieces(text, _WORDS) <= FEW:
        return "not one of the first that are tried: common words, rows of keys, years"
    if _pieces(text, _WORDS | _context(context)) <= FEW:
        return "not made of your e-mail address, your name or the name of this service"
    return ""


def _context(texts: Iterable[str]) -> frozenset[str]:
    words = {"wardgate"}
    for text in texts:
        folded = text.casefold()
        parts = re.split(r"[\W_]+", folded)
        words.update(parts, folded.split("@"), [folded, "".join(parts)])
    return frozenset(word for word in words if len(word) >= _SHORTEST_CONTEXT)


def _repeats(text: str) -> bool:
    """Whether it is one unit at least three times (the last may be cut short)."""
    return any(text == (text[:size] * (len(text) // size + 1))[: len(text)] for size in range(1, len(text) // 3 + 1))


def _pieces(text: str, words: frozenset[str]) -> int:
    """The least number of pieces that make `text`."""
    return len(pieces(text, words))


def pieces(text: str, words: frozenset[str] = _WORDS) -> list[int]:
    """The lengths of the pieces that make `text`, last first; as few as can be."""
    plain, lengths = text.translate(_LEET), sorted({len(word) for word in words})
    least, before = list(range(len(text) + 1)), [end - 1 for end in range(len(text) + 1)]
    for start in range(len(text)):
        cost = least[start] + 1
        ends = [start + 1, *_runs(text, start)]
        ends += [start + n for n in lengths if plain[start : start + n] in words or text[start : start + n] in words]
        ends += [start + 4] if _YEAR.match(text, start) else []
        for end in ends:
            if end <= len(text) and cost < least[end]:
                least[end], before[end] = cost, start
    sizes, end = [], len(text)
    while end > 0:
        sizes.append(end - before[end])
        end = before[end]
    return sizes


def _runs(text: str, start: int) -> Iterable[int]:
    """Where runs that begin at `start` end."""
    for follows in (_same, _up, _down, _neighbours):
        end = start + 1
        while end < len(text) and text[end].isascii() and follows(text[end - 1], text[end]):
            end += 1
        if end - start >= _RUN:
            yield end
    for line in _COLUMNS:
        size = next((n for n in range(len(line), _RUN - 1, -1) if text.startswith(line[:n], start)), 0)
        if size:
            yield start + size


def _same(one: str, next_: str) -> bool:
    return one == next_


def _up(one: str, next_: str) -> bool:
    return ord(next_) - ord(one) == 1


def _down(one: str, next_: str) -> bool:
    return ord(one) - ord(next_) == 1


_NEIGHBOURS = frozenset(pair for row in _ROWS for line in (row, row[::-1]) for pair in pairwise(line))


def _neighbours(one: str, next_: str) -> bool:
    return (one, next_) in _NEIGHBOURS
