"""What an application does with the generated Python client: it logs in, asks who it is, and is refused.

Run with the folder of `wardgate_client` on the path: check.py URL EMAIL PASSWORD
"""

import json
import sys

from wardgate_client.api.accounts import get_auth_me, post_auth_login
from wardgate_client.client import AuthenticatedClient, Client
from wardgate_client.models import LoggedInView, LogIn, LogInMode, Me, ProblemDetails


def main(url: str, email: str, password: str) -> None:
    anyone = Client(base_url=url)
    login = post_auth_login.sync(client=anyone, body=LogIn(email=email, password=password, mode=LogInMode.TOKEN))
    assert isinstance(login, LoggedInView), login
    me = get_auth_me.sync(client=AuthenticatedClient(base_url=url, token=str(login.access_token)))
    assert isinstance(me, Me), me
    wrong = post_auth_login.sync(
        client=anyone, body=LogIn(email=email, password="not the password", mode=LogInMode.TOKEN)
    )
    assert isinstance(wrong, ProblemDetails), wrong
    print(json.dumps({"id": me.user.id, "sid": me.session.sid, "refused": wrong.code}))


if __name__ == "__main__":
    main(*sys.argv[1:])
