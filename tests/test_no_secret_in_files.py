"""No file of the repository holds a secret: looked for by the shapes that secrets have, ours and those of others."""

import re
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SHAPES = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]",
    "an API key of ours": r"\bwgk_[A-Za-z0-9_-]{40}",
    "a webhook's secret": r"\bwhsec_[A-Za-z0-9+/]{24}",
    "a token": r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    "a password in a URL": r"\b(?:postgres(?:ql)?|rediss?|smtps?)://[\w.-]+:(?!password@|secret@)[^@\s:/\"'`{}<>$*]{8,}@",
    "a setting's value": r"(?i:\b(?:secret_key|pepper|api_key)\"?\s*[=:]\s*\"(?!test-)[\w+/=-]{32,}\")",
    "AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60})",
    "GitLab": r"\bglpat-[A-Za-z0-9_-]{20}",
    "Google": r"\bAIza[0-9A-Za-z_-]{35}",
    "npm": r"\bnpm_[A-Za-z0-9]{36}",
    "PyPI": r"\bpypi-[A-Za-z0-9_-]{50}",
    "Slack": r"\bxox[abeoprs]-[A-Za-z0-9-]{10}",
    "Stripe": r"\b[rs]k_live_[0-9A-Za-z]{20}",
}
_ANY = re.compile("|".join(f"(?P<s{i}>{shape})" for i, shape in enumerate(SHAPES.values())))

EXAMPLES = {"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl"}
"""Whose signature says "signature"."""


def found(text: str) -> list[str]:
    """What stands in a text, by the names of SHAPES; never the secret itself."""
    names = list(SHAPES)
    return [names[int(m.lastgroup[1:])] for m in _ANY.finditer(text) if m.lastgroup and m[0] not in EXAMPLES]


def test_no_file_holds_a_secret() -> None:
    if not (git := shutil.which("git")) or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert len(files) > 100
    wrong = {
        str(file.relative_to(ROOT)): what
        for file in files
        if file.is_file() and (what := found(file.read_text(encoding="utf-8", errors="replace")))
    }
    assert wrong == {}


def planted() -> list[tuple[str, str]]:
    """One of each, made here, so that none of them stands in a file."""
    return [
        ("a private key", "-----BEGIN EC " + "PRIVATE KEY-----\nMHcC"),
        ("a private key", "-----BEGIN " + "PRIVATE KEY-----\nMHcC"),
        ("an API key of ours", "X-API-Key: wgk_" + secrets.token_urlsafe(32)),
        ("a webhook's secret", "whsec_" + "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"),
        ("a token", f"eyJ{secrets.token_hex(8)}.eyJ{secrets.token_hex(8)}.{secrets.token_hex(32)}"),
        ("a password in a URL", f"postgresql://app:{secrets.token_hex(8)}@db.example.org/x"),
        ("a setting's value", f'secret_key = "{secrets.token_hex(24)}"'),
        ("AWS", "AKIA" + "ABCDEFGHIJKLMNOP"),
        ("GitHub", "ghp_" + secrets.token_hex(18)),
        ("Slack", "xoxb-" + "1234567890"),
        ("Stripe", "sk_live_" + secrets.token_hex(10)),
    ]


def test_a_secret_would_be_found() -> None:
    for name, text in planted():
        assert found(f"x = '{text}'\n") == [name]
