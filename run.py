"""Wardgate: `python run.py COMMAND`. Every command has --help.

Commands are mounted here and loaded when they are called; where their parts are put together is `gateway.commands`
(dev, serve) and `gateway.app` (what a worker is made of).

Exit codes: 0 done, 1 failure, 2 usage or settings, 3 the audit was changed, 65 database put back to an older state,
69 database or Redis not there after 30 s, 75 folder in use.
"""

import difflib
import sys

try:
    from cyclopts import App
except ModuleNotFoundError:  # not the environment's Python
    sys.exit("run.py: the dependencies are not installed here. `make dev` installs them; then: .venv/bin/python run.py")

COMMANDS = (
    ("dev", "gateway.commands:dev", "Run everything for development, with a real PostgreSQL and a real Valkey."),
    ("serve", "gateway.commands:serve", "Run the gateway in production."),
    ("migrate", "config.operate:migrate", "Apply, list or rehearse the database's migrations."),
    (
        "check-config",
        "gateway.files:check_config",
        "Say all that is wrong with the settings and the files they name.",
    ),
    ("users", "auth.commands:users", "Create, list, disable and enable accounts; set roles and passwords."),
    ("sessions", "sessions.commands:app", "List live sessions, look at one, and end them."),
    ("audit", "sessions.commands:audits", "Who did what to whom: list it, and verify that nobody changed it."),
    ("doctor", "gateway.doctor:doctor", "Measure on this system whether revocations hold, and the worst case."),
    ("restore", "sessions.commands:restore", "Decide what follows after PostgreSQL was restored."),
    ("keys", "auth.commands:keys", "Signing keys and API keys."),
    ("jobs", "sessions.jobs:app", "Work that is done later: list it, try it again, drop it."),
    ("webhooks", "sessions.webhook_routes:app", "Addresses that hear what happens here."),
    ("token", "auth.commands:token", "Make a token, to try things out."),
)

app = App(
    name="run.py",
    help="A realtime gateway that ties every live connection to a login session.",
    help_format="plaintext",
    version_flags=(),
    help_on_error=False,
)

for name, where, text in COMMANDS:
    app.command(where, name=name, help=text)


def main() -> int:
    """Run the command of this process's arguments; the exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("--help", "-h"):  # nothing to load
        app(arguments, result_action="return_value")
        return 0
    names = [name for name, _where, _text in COMMANDS]
    if arguments[0] not in names:
        near = difflib.get_close_matches(arguments[0], names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        print(f"run.py: there is no command {arguments[0]!r} ({hint})", file=sys.stderr)
        return 2
    from config import commands

    return commands.main(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
