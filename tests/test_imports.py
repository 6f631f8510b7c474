"""Imports go one way. Between rooms: config < sessions < auth < gateway < run.py; the way back up is a callback.

Inside `gateway` a module may import from its own layer and from those before it.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("config", "sessions", "auth", "gateway")

LAYERS: tuple[tuple[str, ...], ...] = (
    ("protocol", "metrics", "keys", "page", "deadlines", "files"),
    ("channels", "busframe", "recovery"),
    ("client",),
    ("peers",),
    ("lanes", "gate"),
    ("flush",),
    ("hub",),
    ("broker", "history", "presence", "registry", "control"),
    ("joining", "caps", "anonymous"),
    ("orders", "driver"),
    ("transports",),
    ("node",),
    ("api", "proxy", "app"),
    ("handover", "worker", "inside", "supervisor", "commands", "doctor"),
)


def modules(room: str) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of a room."""
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def imported(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ROOMS)


def layer(module: str) -> int:
    """The layer of a module of `gateway`: by the first part of its name below the room."""
    name = module.split(".")[1]
    found = [index for index, names in enumerate(LAYERS) if name in names]
    assert found, f"gateway.{name} stands in no layer: give it its place in LAYERS"
    return found[0]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(room: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules(room)
        for name in imported(path)
        if ROOMS.index(name.split(".")[0]) > ROOMS.index(room)
    ]
    assert wrong == []


def test_inside_the_gateway_a_module_imports_only_from_layers_before_it() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules("gateway")
        if module != "gateway"
        for name in imported(path)
        if name.startswith("gateway.") and layer(name) > layer(module)
    ]
    assert wrong == []


def test_nothing_imports_itself_in_a_circle() -> None:
    everything = {module: path for room in ROOMS for module, path in modules(room)}
    graph = {m: {_module(name, everything) for name in imported(path)} - {m} for m, path in everything.items()}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def _module(name: str, everything: Mapping[str, Path]) -> str:
    """`from a.b import c`: the module a.b.c where there is one, else a.b."""
    return name if name in everything else name.rpartition(".")[0]


def test_pure_modules_do_no_input_or_output() -> None:
    """What is called pure must be testable without a loop, a socket or a clock."""
    pure = ["gateway/client.py", "gateway/channels.py", "sessions/model.py", "sessions/memory.py"]
    pure += [str(p.relative_to(ROOT)) for p in (ROOT / "gateway/protocol").glob("as_*.py")]
    forbidden = {"asyncio", "socket", "time", "asyncpg", "redis", "aiohttp", "config.redis", "config.database"}
    wrong = []
    for file in pure:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wrong += [f"{file}: {a.name}" for a in node.names if a.name in forbidden]
            elif isinstance(node, ast.ImportFrom) and node.module in forbidden:
                wrong.append(f"{file}: {node.module}")
    assert wrong == []
