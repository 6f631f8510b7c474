"""The bytes of the wire as what they say: messages in server frames, and frames as a client sends them."""

import json
import os
from io import BytesIO
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.proto import parse_length_prefixed

from gateway.protocol import wire_pb2


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """(opcode, payload) of a server's frames, not masked."""
    out = []
    while data:
        length, at = data[1], 2
        if length == 126:
            length, at = int.from_bytes(data[2:4]), 4
        elif length == 127:
            length, at = int.from_bytes(data[2:10]), 10
        out.append((data[0] & 0x0F, data[at : at + length]))
        data = data[at + length :]
    return out


def messages(data: bytes) -> list[dict[str, Any]]:
    """What a server's frames say; a close frame as {"close": [code, reason]}."""
    out: list[dict[str, Any]] = []
    for opcode, payload in frames(data):
        if opcode == 1:
            out += from_json(payload.decode())
        elif opcode == 2:
            out += from_protobuf(payload)
        elif opcode == 8:
            out.append({"close": [int.from_bytes(payload[:2]), payload[2:].decode()]})
    return out


def from_json(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n")]


def from_protobuf(data: bytes) -> list[dict[str, Any]]:
    """Replies as JSON would show them: a publication's `data` decoded, since tests publish JSON."""
    stream, out = BytesIO(data), []
    while stream.tell() < len(data):
        reply: Any = parse_length_prefixed(wire_pb2.Reply, stream)
        found = MessageToDict(reply, preserving_proto_field_name=True)
        if "pub" in found.get("push", {}):
            found["push"]["pub"]["data"] = json.loads(reply.push.pub.data)
        if "message" in found.get("push", {}):
            found["push"]["message"]["data"] = json.loads(reply.push.message.data)
        out.append(found)
    return out


def masked(payload: bytes, opcode: int = 1, *, final: bool = True) -> bytes:
    """A client's frame."""
    key = os.urandom(4)
    size = len(payload)
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + size.to_bytes(2)
    else:
        head += bytes([0x80 | 127]) + size.to_bytes(8)
    return head + key + bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
