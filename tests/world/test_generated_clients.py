"""Clients that are generated from `/openapi.json`, in TypeScript and in Python: they are made without a warning, what
an application does with them is of the right types, and they log in."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.world.conftest import PASSWORD, World

CLIENTS = Path(__file__).parent / "clients"
BIN = Path(sys.executable).parent


async def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What it prints; the test fails with what it says when it ends otherwise than well."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(90):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        pytest.fail(f"{command} did not end")
    assert process.returncode == 0, said.decode(errors="replace")[-4000:]
    return said.decode()


async def description(world: World, folder: Path) -> Path:
    _, document = await world.call("GET", "/openapi.json")
    (folder / "openapi.json").write_text(json.dumps(document))
    return folder / "openapi.json"


async def check(world: World, said: str) -> None:
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    assert found.pop("id").startswith("u_")
    assert found.pop("sid")
    assert found == {"refused": "invalid_credentials"}


async def test_a_python_client_is_generated_type_checked_and_logs_in(one_worker: World, tmp_path: Path) -> None:
    document, client = await description(one_worker, tmp_path), tmp_path / "wardgate_client"
    await run(
        *(BIN / "openapi-python-client", "generate", "--path", document, "--output-path", client),
        *("--meta", "none", "--fail-on-warning"),
        cwd=tmp_path,
    )
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = silent\n")  # what the generator writes is its own
    mypy = (sys.executable, "-m", "mypy", "--strict", "--config-file", "mypy.ini", "--cache-dir", tmp_path / "mypy")
    await run(*mypy, CLIENTS / "check.py", cwd=tmp_path, MYPYPATH=str(tmp_path))
    person = await one_worker.register()
    told = await run(
        *(sys.executable, CLIENTS / "check.py", one_worker.url, person.email, PASSWORD),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
    )
    await check(one_worker, told)


@pytest.mark.node
async def test_a_typescript_client_is_generated_type_checked_and_logs_in(one_worker: World, tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    assert node is not None
    assert npm is not None
    tools = CLIENTS / "node_modules"
    if not (tools / "typescript").exists():
        await run(npm, "ci", "--no-audit", "--no-fund", cwd=CLIENTS)
    for name in ("check.ts", "node.d.ts", "tsconfig.json", "package.json"):
        shutil.copy(CLIENTS / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(tools)
    document = await description(one_worker, tmp_path)
    await run(
        node,
        tools / "openapi-typescript" / "bin" / "cli.js",
        document,
        "-o",
        "api.ts",
        "--default-non-nullable",
        "false",
        cwd=tmp_path,
    )
    await run(node, tools / "typescript" / "bin" / "tsc", "-p", ".", cwd=tmp_path)
    person = await one_worker.register()
    told = await run(node, "check.js", one_worker.url, person.email, PASSWORD, cwd=tmp_path)
    await check(one_worker, told)
