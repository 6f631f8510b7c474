"""The server API for backends: `POST /api/<method>` in Centrifugo's shapes, errors included.

Shapes live here; what a method does is the node's. Outside this room errors are problem details; here an error is a 200
with `{"error": {"code", "message"}}`, or a status of its own with `X-Centrifugo-Error-Mode: transport`.
"""

import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import structlog
from aiohttp import web

from config.http import CURRENT, IDENTIFY, Caller, Problem, Route, mount, read_bytes
from gateway.broker import StreamPosition
from gateway.node import Node, NodeError
from gateway.protocol.codec import is_json
from gateway.protocol.codes import ErrorCode
from gateway.protocol.commands import I64, MAX_OFFSET, U32

log = structlog.get_logger(__name__)

MAX_BODY = 1024 * 1024
MAX_BATCH = 1000
MAX_BROADCAST = 10_000

_STATUS = {100: 500, 102: 404, 104: 404, 107: 400, 108: 400, 112: 416}


class Position(msgspec.Struct, frozen=True):
    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_OFFSET)] = 0
    epoch: str = ""


class Flag(msgspec.Struct, frozen=True):
    value: bool = False


class PublishRequest(msgspec.Struct, frozen=True):
    channel: str = ""
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    b64data: str = ""
    skip_history: bool = False
    tags: dict[str, str] = {}
    idempotency_key: str = ""


class BroadcastRequest(msgspec.Struct, frozen=True):
    channels: list[str] = []
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    b64data: str = ""
    skip_history: bool = False
    tags: dict[str, str] = {}
    idempotency_key: str = ""


class Override(msgspec.Struct, frozen=True):
    presence: Flag | None = None
    join_leave: Flag | None = None
    force_recovery: Flag | None = None
    force_positioning: Flag | None = None
    force_push_join_leave: Flag | None = None


class SubscribeRequest(msgspec.Struct, frozen=True):
    user: str = ""
    channel: str = ""
    client: str = ""
    session: str = ""
    expire_at: I64 = 0
    info: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    b64info: str = ""
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    b64data: str = ""
    recover_since: Position | None = None
    override: Override | None = None


class UnsubscribeRequest(msgspec.Struct, frozen=True):
    user: str = ""
    channel: str = ""
    client: str = ""
    session: str = ""


class DisconnectCode(msgspec.Struct, frozen=True):
    code: U32 = 0
    reason: str = ""


class DisconnectRequest(msgspec.Struct, frozen=True):
    user: str = ""
    client: str = ""
    session: str = ""
    whitelist: list[str] = []
    disconnect: DisconnectCode | None = None


class RefreshRequest(msgspec.Struct, frozen=True):
    user: str = ""
    client: str = ""
    session: str = ""
    expired: bool = False
    expire_at: I64 = 0
    info: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class ChannelRequest(msgspec.Struct, frozen=True):
    channel: str = ""


class HistoryRequest(msgspec.Struct, frozen=True):
    channel: str = ""
    limit: I64 = 0
    since: Position | None = None
    reverse: bool = False


class ChannelsRequest(msgspec.Struct, frozen=True):
    pattern: str = ""


class InfoRequest(msgspec.Struct, frozen=True):
    pass


class RpcRequest(msgspec.Struct, frozen=True):
    method: str = ""
    params: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class BatchRequest(msgspec.Struct, frozen=True):
    commands: list[dict[str, msgspec.Raw] | None] = []
    parallel: bool = False


class ErrorObject(msgspec.Struct, frozen=True):
    code: int
    message: str


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every method but `batch` returns: one of the two."""

    error: ErrorObject | None = None
    result: dict[str, Any] | None = None


class BatchAnswer(msgspec.Struct, frozen=True):
    replies: list[dict[str, Any]]


class MethodError(Exception):
    """A method's refusal, by code of the protocol's table."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code)
        self.object = _object(code)


Result = dict[str, Any]
Method = Callable[[Any], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class _Entry:
    request: type[Any]
    run: Method
    summary: str
    decoder: msgspec.json.Decoder[Any]


def _data(raw: msgspec.Raw, b64: str) -> bytes:
    """`b64` may hold anything; raw JSON is checked at this door and passed on byte for byte from here."""
    if b64:
        try:
            return base64.b64decode(b64, validate=True)
        except ValueError:  # binascii.Error, or not ASCII
            raise MethodError(ErrorCode.BAD_REQUEST) from None
    data = bytes(raw)
    if data and not is_json(data):
        raise MethodError(ErrorCode.BAD_REQUEST)
    return data


class Methods:
    """The methods by name, over one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        table: Mapping[str, tuple[type[Any], Method, str]] = {
            "publish": (PublishRequest, self.publish, "Publish data into a channel"),
            "broadcast": (BroadcastRequest, self.broadcast, "Publish the same data into many channels"),
            "subscribe": (SubscribeRequest, self.subscribe, "Subscribe a user's connections to a channel"),
            "unsubscribe": (UnsubscribeRequest, self.unsubscribe, "Unsubscribe a user's connections"),
            "disconnect": (DisconnectRequest, self.disconnect, "Close a user's connections (they may come back)"),
            "refresh": (RefreshRequest, self.refresh, "Prolong or expire a user's connections"),
            "presence": (ChannelRequest, self.presence, "Who is subscribed to a channel"),
            "presence_stats": (ChannelRequest, self.presence_stats, "How many are subscribed to a channel"),
            "history": (HistoryRequest, self.history, "Publications that a channel keeps"),
            "history_remove": (ChannelRequest, self.history_remove, "Drop the publications that a channel keeps"),
            "channels": (ChannelsRequest, self.channels, "Channels that have subscribers"),
            "info": (InfoRequest, self.info, "The nodes of the cluster"),
            "rpc": (RpcRequest, self.rpc, "Call a handler registered in code"),
        }
        self.table = {
            name: _Entry(request, run, summary, msgspec.json.Decoder(request))
            for name, (request, run, summary) in table.items()
        }

    async def call(self, name: str, raw: bytes) -> Answer:
        """Decode, run, and turn refusals into the error object. Raises DecodeError for a body that is not JSON."""
        entry = self.table.get(name)
        if entry is None:
            return Answer(error=MethodError(ErrorCode.METHOD_NOT_FOUND).object)
        try:
            request = _forgiving(entry.decoder, raw)
            return Answer(result=await entry.run(request))
        except (MethodError, NodeError) as refusal:
            return Answer(error=refusal.object if isinstance(refusal, MethodError) else _object(refusal.code))

    async def batch(self, request: BatchRequest) -> BatchAnswer:
        """One after the other; a failed command does not stop the rest."""
        return BatchAnswer([await self._batched(command) for command in request.commands])

    async def _batched(self, command: dict[str, msgspec.Raw] | None) -> dict[str, Any]:
        known = [(name, raw) for name, raw in (command or {}).items() if name in self.table]
        if not known:
            code = ErrorCode.BAD_REQUEST if command is None else ErrorCode.METHOD_NOT_FOUND
            return {"error": _object(code)}
        name, raw = known[0]
        try:
            answer = await self.call(name, bytes(raw))
        except msgspec.DecodeError:
            return {"error": _object(ErrorCode.BAD_REQUEST)}
        return {"error": answer.error} if answer.error else {name: answer.result}

    async def publish(self, request: PublishRequest) -> Result:
        data = _data(request.data, request.b64data)
        if not request.channel or not data:
            raise MethodError(ErrorCode.BAD_REQUEST)
        position = await self._node.publish(
            request.channel,
            data,
            skip_history=request.skip_history,
            tags=request.tags,
            idempotency_key=request.idempotency_key,
        )
        return {"offset": position.offset, "epoch": position.epoch} if position else {}

    async def broadcast(self, request: BroadcastRequest) -> Result:
        data = _data(request.data, request.b64data)
        if not 0 < len(request.channels) <= MAX_BROADCAST or not data:
            raise MethodError(ErrorCode.BAD_REQUEST)
        outcomes = await self._node.broadcast(
            request.channels,
            data,
            skip_history=request.skip_history,
            tags=request.tags,
            idempotency_key=request.idempotency_key,
        )
        return {"responses": [_response(outcome) for outcome in outcomes]}

    async def subscribe(self, request: SubscribeRequest) -> Result:
        if not request.channel:
            raise MethodError(ErrorCode.BAD_REQUEST)
        override = request.override or Override()
        await self._node.subscribe(
            request.user,
            request.channel,
            client=request.client,
            session=request.session,
            expire_at=request.expire_at,
            info=_data(request.info, request.b64info),
            data=_data(request.data, request.b64data),
            since=(request.recover_since.offset, request.recover_since.epoch) if request.recover_since else None,
            override={
                name: flag.value for name in Override.__struct_fields__ if (flag := getattr(override, name)) is not None
            },
        )
        return {}

    async def unsubscribe(self, request: UnsubscribeRequest) -> Result:
        await self._node.unsubscribe(request.user, request.channel, client=request.client, session=request.session)
        return {}

    async def disconnect(self, request: DisconnectRequest) -> Result:
        close = request.disconnect if request.disconnect and request.disconnect.code else None
        if close is not None and not (3000 <= close.code <= 4999 and len(close.reason.encode()) <= 123):
            raise MethodError(ErrorCode.BAD_REQUEST)
        await self._node.disconnect(
            request.user,
            code=close.code if close else 3503,
            reason=close.reason if close else "force disconnect",
            client=request.client,
            session=request.session,
            whitelist=tuple(request.whitelist),
        )
        return {}

    async def refresh(self, request: RefreshRequest) -> Result:
        await self._node.refresh(
            request.user,
            client=request.client,
            session=request.session,
            expired=request.expired,
            expire_at=request.expire_at,
            info=_data(request.info, ""),
        )
        return {}

    async def presence(self, request: ChannelRequest) -> Result:
        present = await self._node.presence(_named(request.channel))
        return {"presence": {client: _info(info) for client, info in present.items()}}

    async def presence_stats(self, request: ChannelRequest) -> Result:
        clients, users = await self._node.presence_stats(_named(request.channel))
        return {"num_clients": clients, "num_users": users}

    async def history(self, request: HistoryRequest) -> Result:
        found = await self._node.history(
            _named(request.channel),
            limit=request.limit,
            since=(request.since.offset, request.since.epoch) if request.since else None,
            reverse=request.reverse,
        )
        publications = [_publication(publication) for publication in found.publications]
        return {"publications": publications, "epoch": found.epoch, "offset": found.offset}

    async def history_remove(self, request: ChannelRequest) -> Result:
        await self._node.history_remove(_named(request.channel))
        return {}

    async def channels(self, request: ChannelsRequest) -> Result:
        counts = await self._node.channels(request.pattern)
        return {"channels": {name: {"num_clients": count} for name, count in counts.items()}}

    async def info(self, _request: InfoRequest) -> Result:
        return {"nodes": await self._node.info()}

    async def rpc(self, request: RpcRequest) -> Result:
        if not request.method:
            raise MethodError(ErrorCode.BAD_REQUEST)
        return _put({}, "data", await self._node.rpc(request.method, bytes(request.params)))


def _named(channel: str) -> str:
    if not channel:
        raise MethodError(ErrorCode.BAD_REQUEST)
    return channel


def _object(code: ErrorCode) -> ErrorObject:
    """The client protocol says "method not found" where this API says "not found"."""
    return ErrorObject(code.value, "not found" if code is ErrorCode.METHOD_NOT_FOUND else code.message)


def _response(outcome: StreamPosition | ErrorCode | None) -> dict[str, Any]:
    if isinstance(outcome, ErrorCode):
        return {"error": _object(outcome)}
    return {"result": {"offset": outcome.offset, "epoch": outcome.epoch} if outcome else {}}


def _info(info: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"user": info.user, "client": info.client}
    return _put(_put(out, "conn_info", info.conn_info), "chan_info", info.chan_info)


def _publication(publication: Any) -> dict[str, Any]:
    out = _put({}, "data", publication.data)
    out["offset"] = publication.offset
    if publication.info is not None:
        out["info"] = _info(publication.info)
    if publication.tags:
        out["tags"] = publication.tags
    return out


def _put(out: Result, name: str, data: bytes) -> Result:
    """`data` as it came where it is JSON. Else it is some client's Protobuf data, which must not be read as a part of
    this answer: it stands under `b64<name>`, in base64."""
    if is_json(data):
        out[name] = msgspec.Raw(data)
    elif data:
        out[f"b64{name}"] = base64.b64encode(data).decode()
    return out


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _forgiving(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    """Some libraries write `null` for what is absent. DecodeError if that was not it."""
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError:
        fields = {name: value for name, value in _fields(raw).items() if name == "data" or bytes(value) != b"null"}
        return decoder.decode(msgspec.json.encode(fields))


class Api:
    """The routes over `Methods`: credentials, bodies, status codes."""

    def __init__(self, node: Node, *, insecure: bool, transport_errors: bool) -> None:
        self._methods = Methods(node)
        self._insecure = insecure
        self._transport_errors = transport_errors
        self._batch = msgspec.json.Decoder(BatchRequest)

    def mount(self, app: web.Application) -> None:
        """Serve every method, `batch` and the old single endpoint."""
        routes = [
            _route(name, entry.run, entry.summary, entry.request, Answer) for name, entry in self._methods.table.items()
        ]
        mount(app, routes, lambda route: self._handler(route.path.removeprefix("/api/")))
        batch = _route("batch", self._methods.batch, "Several methods in one request", BatchRequest, BatchAnswer)
        mount(app, [batch], lambda _route: self._guarded(self._answer_batch))
        app.router.add_post("/api", self._guarded(self._answer_old))
        app.router.add_post("/api/{method}", self._guarded(self._unknown))

    def _handler(self, name: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request, raw: bytes) -> web.Response:
            return self._respond(request, await self._methods.call(name, raw))

        return self._guarded(answer)

    def _guarded(
        self, answer: Callable[[web.Request, bytes], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            if not request.app[CURRENT]():
                raise Problem("frozen", retry_after=1)
            if not self._insecure and not _may_call(await _api_caller(request)):
                return web.Response(status=401)
            try:
                raw = await read_bytes(request, MAX_BODY)
                raw.decode()  # the decoder does not look inside strings that it passes on raw
                return await answer(request, raw or b"{}")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return web.Response(status=400, text="Bad Request")
            except Problem as problem:
                return web.Response(status=problem.details.status, text=problem.details.title)

        return handle

    def _respond(self, request: web.Request, answer: Answer) -> web.Response:
        transport = self._transport_errors or request.headers.get("X-Centrifugo-Error-Mode") == "transport"
        if answer.error is not None and transport:
            status = _STATUS.get(answer.error.code, 500)
            return web.Response(body=msgspec.json.encode(answer.error), status=status, content_type="application/json")
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _answer_batch(self, _request: web.Request, raw: bytes) -> web.Response:
        request = self._batch.decode(raw)
        if len(request.commands) > MAX_BATCH:
            return web.Response(status=413, text=f"at most {MAX_BATCH} commands")
        answer = await self._methods.batch(request)
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _answer_old(self, _request: web.Request, raw: bytes) -> web.Response:
        """`{"method", "params"}`, one or several separated by newlines."""
        lines = [line for line in raw.split(b"\n") if line.strip()]
        if len(lines) > MAX_BATCH:
            return web.Response(status=413, text=f"at most {MAX_BATCH} commands")
        commands = [msgspec.json.decode(line, type=_Old) for line in lines]
        answers = [await self._old(command) for command in commands]
        return web.Response(body=b"\n".join(answers), content_type="application/json")

    async def _old(self, command: "_Old") -> bytes:
        try:
            answer = await self._methods.call(command.method, bytes(command.params) or b"{}")
        except msgspec.DecodeError:
            answer = Answer(error=_object(ErrorCode.BAD_REQUEST))
        body = {"error": answer.error} if answer.error else {"result": answer.result}
        line = msgspec.json.encode({"id": command.id, **body} if command.id else body)
        return line.replace(b"\n", b"")  # they stand between tokens of data that was passed on as it came

    async def _unknown(self, _request: web.Request, _raw: bytes) -> web.Response:
        return web.Response(status=404, text="404 page not found")


def _route(name: str, run: Callable[[Any], Awaitable[Any]], summary: str, body: type, result: type) -> Route:
    """`run` stands for the method in the description; the adapter given to `mount` is what serves it."""
    return Route("POST", f"/api/{name}", run, summary, body=body, result=result, access="key", tag="server API")


class _Old(msgspec.Struct, frozen=True):
    id: int = 0
    method: str = ""
    params: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


async def _api_caller(request: web.Request) -> Caller | None:
    """None for a credential that is not good; a Problem where that cannot be told at the moment."""
    try:
        return await request.app[IDENTIFY](request)
    except Problem as problem:
        if problem.details.status != 401:
            raise
        return None


def _may_call(caller: Caller | None) -> bool:
    return caller is not None and caller.via == "api_key" and caller.may("api") and not caller.lacks_factor
