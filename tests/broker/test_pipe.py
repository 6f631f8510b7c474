"""Pipe on a real Valkey, in all the ways that it can be away."""

import asyncio
import datetime
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import redis.asyncio as redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config import redis as redis_module
from config.clock import boottime
from config.redis import Pipe, Refused, Run, Script, Unavailable
from config.resp import Greeting, Link
from tests.broker.conftest import PATIENCE, Server, Signal, Wire

OpenPipe = Callable[..., Awaitable[Pipe]]
OpenWire = Callable[..., Awaitable[Wire]]

COUNT = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
PUNCTUAL = Script(
    "local t = redis.call('TIME') if t[1] * 1000 + t[2] / 1000 > tonumber(ARGV[1]) then"
    " return redis.error_reply('LATE') end return redis.call('INCR', KEYS[1])"
)


def restored(pipe: Pipe) -> Signal:
    signal = Signal()
    pipe.on_restored.append(signal)
    return signal


def lost(pipe: Pipe) -> Signal:
    signal = Signal()
    pipe.on_lost.append(signal)
    return signal


async def test_commands_scripts_and_batches(pipe: Pipe) -> None:
    assert await pipe.call("SET", "a", b"\x00\xff") == b"OK"
    assert await pipe.call("GET", b"a") == b"\x00\xff"
    assert await pipe.run(COUNT, ["n"], [5]) == 5
    replies = await pipe.batch([("INCR", "n"), Run(COUNT, ["n"], [1]), ("LPUSH", "n", 1)])
    assert replies[:2] == [6, 7]
    assert replies[2].code == "WRONGTYPE"
    with pytest.raises(Refused, match="WRONGTYPE"):
        await pipe.call("LPUSH", "n", 1)


async def test_redis_url_chooses_the_database(redis_url: str, open_pipe: OpenPipe, pipe: Pipe) -> None:
    other = await open_pipe(redis_url.removesuffix("/0") + "/5")
    await other.call("SET", "a", "five")
    assert await pipe.call("GET", "a") is None
    await pipe.call("SELECT", 5)
    assert await pipe.call("GET", "a") == b"five"


async def test_a_wrong_password_is_said(redis_url: str) -> None:
    pipe = Pipe(redis_url.replace("wardgate", "wrong"))
    with pytest.raises(Unavailable, match="WRONGPASS") as caught:
        await pipe.start(timeout=0.3)
    assert "wrong@" not in str(caught.value)
    assert not pipe.connected


async def test_nobody_there_is_said_in_time() -> None:
    pipe = Pipe("redis://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        await pipe.start(timeout=0.2)
    with pytest.raises(Unavailable):
        pipe.call("PING")


async def test_a_unix_socket(server: Server, open_pipe: OpenPipe) -> None:
    path = server.folder / "valkey.sock"
    pipe = await open_pipe(server.url)
    await pipe.call("SET", "a", "x")
    await pipe.call("CONFIG", "SET", "save", "")
    with pytest.raises(Unavailable):
        await pipe.call("SHUTDOWN", "NOSAVE")
    server.stop()
    server.extra = f"unixsocket {path}\nunixsocketperm 777\n"
    server.start()
    through = await open_pipe(f"unix://:wardgate@{path}?db=1")
    assert await through.call("PING") == b"PONG"


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "certificate.pem", folder / "key.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context


async def test_tls_and_a_server_that_is_somebody_else(
    redis_url: str, wire: OpenWire, open_pipe: OpenPipe, tmp_path: Path
) -> None:
    public, context = certificate(tmp_path)
    port = (await wire(int(redis_url.rsplit(":", 1)[1].split("/")[0]), context)).port
    pipe = await open_pipe(f"rediss://:wardgate@localhost:{port}/0?ssl_ca_certs={public}")
    assert await pipe.call("PING") == b"PONG"
    for wrong in (f"rediss://:wardgate@localhost:{port}", f"rediss://:wardgate@127.0.0.1:{port}?ssl_ca_certs={public}"):
        with pytest.raises(Unavailable, match="certificate"):
            await Pipe(wrong).start(timeout=0.3)


async def test_kill_9_and_a_restart(server: Server, open_pipe: OpenPipe) -> None:
    pipe = await open_pipe(server.url)
    gone, back, before = lost(pipe), restored(pipe), pipe.server
    server.freeze()
    calls = [pipe.call("INCR", "n") for _ in range(10)]
    await asyncio.sleep(0)
    server.kill()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) and outcome.uncertain for outcome in outcomes)
    await gone.wait()
    assert not pipe.connected
    with pytest.raises(Unavailable) as caught:
        pipe.call("PING")
    assert not caught.value.uncertain
    server.again()
    await back.wait()
    assert await pipe.call("GET", "n") is None  # what was in flight was not sent again
    assert pipe.server != before
    assert await pipe.run(COUNT, ["n"], [2]) == 2


async def test_a_stopped_server_costs_the_timeout_and_no_more(server: Server, open_pipe: OpenPipe) -> None:
    pipe = await open_pipe(server.url, timeout=0.3)
    back = restored(pipe)
    server.freeze()
    began = boottime()
    outcomes = await asyncio.gather(*(pipe.call("PING") for _ in range(100)), return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert 0.3 <= boottime() - began < 1.0
    with pytest.raises(Unavailable):
        pipe.call("PING")
    server.thaw()
    await back.wait()
    assert await pipe.call("PING") == b"PONG"


async def test_nothing_that_was_given_up_runs_when_a_stopped_server_goes_on(
    server: Server, open_pipe: OpenPipe
) -> None:
    pipe = await open_pipe(server.url, timeout=0.3)
    back = restored(pipe)
    server.freeze()
    late, blind = pipe.run(PUNCTUAL, ["late"], [pipe.deadline()]), pipe.call("INCR", "blind")
    for call in (late, blind):
        with pytest.raises(Unavailable):
            await call
    server.thaw()
    await back.wait()
    assert await pipe.call("GET", "late") is None
    assert await pipe.call("GET", "blind") == b"1"  # without a deadline it does run: that is what deadlines are for
    assert await pipe.run(PUNCTUAL, ["late"], [pipe.deadline()]) == 1


async def test_a_script_beyond_its_deadline_is_refused_and_did_not_run(pipe: Pipe) -> None:
    with pytest.raises(Refused, match="LATE"):
        await pipe.run(PUNCTUAL, ["late"], [pipe.deadline(-0.1)])
    assert await pipe.call("GET", "late") is None


async def test_the_servers_clock_is_known(pipe: Pipe) -> None:
    seconds, micros = await pipe.call("TIME")
    now = int(seconds) + int(micros) / 1e6
    assert abs(pipe.deadline(0) / 1000 - now) < 0.25


async def test_a_connection_that_only_goes_silent_is_found_by_its_beat(
    server: Server, wire: OpenWire, open_pipe: OpenPipe
) -> None:
    line = await wire(server.port)
    pipe = await open_pipe(f"redis://:wardgate@127.0.0.1:{line.port}", timeout=0.3)
    gone, back = lost(pipe), restored(pipe)
    line.hold()
    began = boottime()
    await gone.wait()
    assert boottime() - began < 3
    line.flow()
    await back.wait()
    assert await pipe.call("PING") == b"PONG"


async def test_a_cut_connection_is_made_again(server: Server, wire: OpenWire, open_pipe: OpenPipe) -> None:
    line = await wire(server.port)
    pipe = await open_pipe(f"redis://:wardgate@127.0.0.1:{line.port}")
    gone, back = lost(pipe), restored(pipe)
    for _ in range(3):
        line.cut()
        await gone.wait()
        await back.wait()
        assert await pipe.call("PING") == b"PONG"
    assert pipe.losses == 3


async def test_a_connection_that_ends_while_it_is_prepared_is_not_taken_into_use(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, prepare, attempts = Pipe(redis_url), Pipe._prepare, 0
    back = restored(pipe)

    async def prepare_in_vain(self: Pipe, link: Link, greeting: Greeting) -> None:
        nonlocal attempts
        attempts += 1
        await prepare(self, link, greeting)
        if attempts == 1:
            link.connection_lost(None)

    monkeypatch.setattr(Pipe, "_prepare", prepare_in_vain)
    await pipe.start(PATIENCE)
    assert (attempts, back.times) == (2, 1)
    assert await pipe.call("PING") == b"PONG"
    await pipe.close()


async def test_script_flush_is_not_noticed(pipe: Pipe) -> None:
    assert await pipe.run(COUNT, ["n"], [1]) == 1
    await pipe.call("SCRIPT", "FLUSH")
    assert await asyncio.gather(*(pipe.run(COUNT, ["n"], [1]) for _ in range(5))) == [2, 3, 4, 5, 6]
    await pipe.call("SCRIPT", "FLUSH")
    assert await pipe.batch([Run(COUNT, ["n"], [1]), Run(COUNT, ["n"], [1])]) == [7, 8]


async def test_a_server_that_becomes_a_replica_is_left(
    open_server: Callable[[], Server], open_pipe: OpenPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "BEAT", 3600.0)  # the first write that is refused must be enough
    server, other = open_server(), open_server()
    pipe = await open_pipe(server.url)
    gone, back = lost(pipe), restored(pipe)
    await pipe.batch([("CONFIG", "SET", "masterauth", "wardgate"), ("REPLICAOF", "127.0.0.1", other.port)])
    with pytest.raises(Unavailable):
        await pipe.call("SET", "a", 1)
    await gone.wait()
    assert not pipe.connected
    with pytest.raises(Unavailable, match="replica"):
        await Pipe(server.url).start(timeout=0.3)
    before = pipe.server
    async with redis.from_url(server.url) as commands:
        await commands.replicaof("NO", "ONE")
    await back.wait()
    assert pipe.server.split("-")[0] == before.split("-")[0]
    assert pipe.server != before  # the same process, another history


async def test_demotion_is_seen_without_a_write(open_server: Callable[[], Server], open_pipe: OpenPipe) -> None:
    server, other = open_server(), open_server()
    pipe = await open_pipe(server.url)
    gone = lost(pipe)
    await pipe.batch([("CONFIG", "SET", "masterauth", "wardgate"), ("REPLICAOF", "127.0.0.1", other.port)])
    await gone.wait()
    assert "replica" in pipe.why


async def test_cancelled_at_every_step_nobody_gets_anothers_reply(pipe: Pipe) -> None:
    """Cancel one of three callers after n steps of the loop, for every n that there is."""

    async def ask(value: int) -> object:
        return await pipe.call("ECHO", str(value))

    for steps in range(12):
        tasks = [asyncio.create_task(ask(number)) for number in range(3)]
        for _ in range(steps):
            await asyncio.sleep(0)
        tasks[1].cancel()
        async with asyncio.timeout(PATIENCE):
            first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
        assert (first, third) == (b"0", b"2")
        assert second == b"1" or isinstance(second, asyncio.CancelledError)
    assert await pipe.call("ECHO", "after") == b"after"


async def test_start_may_be_cancelled_at_every_step(redis_url: str) -> None:
    for steps in range(30):
        pipe = Pipe(redis_url)
        task = asyncio.create_task(pipe.start())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(task, return_exceptions=True)
        await pipe.close()
        assert not pipe.connected
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "wardgate-pipe"]


async def test_close_ends_what_is_in_flight(server: Server, open_pipe: OpenPipe) -> None:
    pipe = await open_pipe(server.url)
    gone = lost(pipe)
    server.freeze()
    call = pipe.call("PING")
    await asyncio.sleep(0)
    await pipe.close()
    with pytest.raises(Unavailable):
        await call
    with pytest.raises(Unavailable, match="closed"):
        pipe.call("PING")
    assert not gone.times
    await pipe.close()


async def test_a_listener_that_fails_does_not_stop_the_others(
    server: Server, wire: OpenWire, open_pipe: OpenPipe
) -> None:
    line = await wire(server.port)
    pipe = await open_pipe(f"redis://:wardgate@127.0.0.1:{line.port}")

    def fail() -> None:
        raise RuntimeError("a listener")

    pipe.on_lost.append(fail)
    pipe.on_restored.append(fail)
    gone, back = lost(pipe), restored(pipe)
    line.cut()
    await gone.wait()
    await back.wait()
    assert await pipe.call("PING") == b"PONG"
