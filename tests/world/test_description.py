"""The description of the running product: every route stands in it, with the codes that it can answer."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from config.scopes import SCOPES
from tests.world.conftest import World, running

INTERFACE = """
POST /auth/register /auth/login /auth/token /auth/refresh /auth/logout /auth/password /admin/revocations
GET /auth/me /auth/sessions /.well-known/jwks.json /admin/sessions /admin/users /admin/nodes /admin/audit
GET /admin/revocations /admin/revocations/{id} /health /ready /metrics /openapi.json
DELETE /auth/sessions /auth/sessions/{sid}
PATCH /admin/users/{id}
POST /auth/guest /auth/verify-email /auth/verify-email/resend /auth/password/forgot /auth/password/reset
POST /auth/login/factor /auth/step-up /auth/totp /auth/totp/confirm
POST /auth/login/factor/options /auth/step-up/options /auth/recovery-codes
POST /auth/passkeys /auth/passkeys/options /auth/passkeys/login /auth/passkeys/login/options
GET /auth/factors /auth/passkeys
PATCH /auth/passkeys/{id}
DELETE /auth/totp /auth/passkeys/{id} /admin/users/{id}/factors
POST /auth/email /auth/email/confirm /admin/webhooks /admin/webhooks/{id}/test /admin/jobs/{id}/retry
GET /admin/jobs /admin/webhooks /admin/keys /admin/service-accounts /admin/signing-keys /admin/settings /admin/mail
POST /admin/webhooks/{id}/replay
POST /admin/keys /admin/keys/{id}/rotation /admin/service-accounts /admin/signing-keys/rotation
PATCH /admin/keys/{id} /admin/service-accounts/{name}
DELETE /admin/keys/{id}
POST /api/publish /api/broadcast /api/subscribe /api/unsubscribe /api/disconnect /api/refresh /api/presence
POST /api/presence_stats /api/history /api/history_remove /api/channels /api/info /api/batch /api/rpc
"""


async def test_every_route_of_the_interface_is_described(one_worker: World) -> None:
    status, document = await one_worker.call("GET", "/openapi.json")
    assert status == 200
    assert document["openapi"].startswith("3.1")
    for line in INTERFACE.strip().splitlines():
        method, *paths = line.split()
        for path in paths:
            assert method.lower() in document["paths"].get(path, {}), f"{method} {path}"


async def test_every_admin_route_of_the_product_refuses_a_key_of_every_other_scope(one_worker: World) -> None:
    """`/admin/nodes` too, and all that is not of accounts; what roles may is walked in tests/auth/test_scopes.py."""
    _, document = await one_worker.call("GET", "/openapi.json")
    asked: dict[str, list[tuple[str, str]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/admin/"):
                [scope] = {scope for one in operation["security"] for scopes in one.values() for scope in scopes}
                asked.setdefault(scope, []).append((method.upper(), re.sub(r"{\w+}", "x", path)))
    assert set(asked) <= set(SCOPES)
    root = one_worker.info["api_key"]
    for scope, routes in asked.items():
        body = {"name": f"not {scope}", "scopes": [other for other in SCOPES if other != scope]}
        status, made = await one_worker.call("POST", "/admin/keys", body, X_API_Key=root)
        assert status == 201, made
        for method, path in routes:
            status, problem = await one_worker.call(method, path, X_API_Key=made["secret"])
            assert (status, problem["detail"]) == (403, f"needs the scope {scope}"), (method, path)
        assert (await one_worker.call("DELETE", f"/admin/keys/{made['key']['id']}", X_API_Key=root))[0] == 204


async def test_every_reference_in_the_description_leads_somewhere(one_worker: World) -> None:
    _, text = await one_worker.call("GET", "/openapi.json")
    schemas = text["components"]["schemas"]
    for name in re.findall(r"#/components/schemas/([^'\"]+)", str(text)):
        assert name in schemas


async def test_the_readme_names_routes_that_exist(one_worker: World) -> None:
    _, document = await one_worker.call("GET", "/openapi.json")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for path in set(re.findall(r"(/(?:auth|admin|api)/[a-z_/-]+)", readme)):
        assert path in document["paths"], path


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_requests_made_from_the_description_find_nothing_that_it_does_not_say(tmp_path: Path) -> None:
    """schemathesis makes requests, good and bad, for every route, with a key that may all: no answer is a 500, has a
    status or a form that is not described, or takes what the description forbids."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    async with running(1) as world:  # it uses up limits and makes users
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{world.url}/openapi.json"),
            *("--header", f"X-API-Key: {world.info['api_key']}", "--max-examples", "8", "--workers", "1"),
            *("--checks", checks, "--request-timeout", "10", "--phases", "coverage,fuzzing"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert "generated" in out.decode()
