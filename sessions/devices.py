"""What a person is told about where a session lives: a browser's and a system's name, read off the user agent.

A name for people, not a fact: anyone can send anything. Nothing is decided by it.
"""

import ipaddress
import re

# The first that is found wins: browsers name their ancestors too, so the youngest come first.
_BROWSERS = (
    ("Edg", "Edge"),
    ("OPR", "Opera"),
    ("SamsungBrowser", "Samsung Internet"),
    ("Vivaldi", "Vivaldi"),
    ("FxiOS", "Firefox"),
    ("Firefox", "Firefox"),
    ("CriOS", "Chrome"),
    ("Chrome", "Chrome"),
    ("Safari", "Safari"),
)
_SYSTEMS = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("CrOS", "ChromeOS"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("Macintosh", "macOS"),
    ("Linux", "Linux"),
)
_PRODUCT = re.compile(r"[A-Za-z0-9][\w.+-]{0,39}", re.ASCII)


def device_name(user_agent: str) -> str:
    """`"Firefox on Linux"`; the product's name for what is no browser ("curl"); "" when nothing can be said."""
    browser = next((name for token, name in _BROWSERS if token + "/" in user_agent), "")
    system = next((name for token, name in _SYSTEMS if token in user_agent), "")
    if browser and user_agent.startswith("Mozilla/"):
        return f"{browser} on {system}" if system else browser
    product = _PRODUCT.match(user_agent)
    name = "" if product is None or product[0] == "Mozilla" else product[0]
    return f"{name} on {system}" if name and system else name or system


def place(address: str) -> str:
    """Where, and no closer: the /24 of an IPv4 address, the /48 of another. "" when nothing can be said."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    return str(ipaddress.ip_network((parsed, 24 if parsed.version == 4 else 48), strict=False))
