"""What browsers are asked for a passkey, and what they answer: the JSON forms of WebAuthn Level 3 (5.1.8, 5.1.9).

`PublicKeyCredential.parseCreationOptionsFromJSON`, `parseRequestOptionsFromJSON` and a credential's `toJSON` speak
them. Bytes are base64url without padding. Answers may say more than is read here.
"""

from typing import Annotated, Literal

import msgspec

TIMEOUT = 300_000
"""Milliseconds that a person may take."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=1364)]  # 1023 bytes
Kind = Literal["public-key"]


class Descriptor(msgspec.Struct, frozen=True):
    """A passkey that is meant."""

    id: str
    transports: list[str]
    type: Kind = "public-key"


class RelyingParty(msgspec.Struct, frozen=True):
    id: str
    name: str


class Person(msgspec.Struct, frozen=True, rename="camel"):
    """`id` is the user handle: our id of the user, which says nothing of them."""

    id: str
    name: str
    display_name: str


class Algorithm(msgspec.Struct, frozen=True):
    """By its number in the COSE registry."""

    alg: int
    type: Kind = "public-key"


class Selection(msgspec.Struct, frozen=True, rename="camel"):
    """It is found without a name, and whoever holds it is verified: by a fingerprint, a face, a PIN."""

    resident_key: str = "required"
    require_resident_key: bool = True
    user_verification: str = "required"


class CreationOptions(msgspec.Struct, frozen=True, rename="camel"):
    """For `navigator.credentials.create`."""

    rp: RelyingParty
    user: Person
    challenge: str
    pub_key_cred_params: list[Algorithm]
    exclude_credentials: list[Descriptor]
    authenticator_selection: Selection = Selection()
    attestation: str = "none"
    timeout: int = TIMEOUT


class RequestOptions(msgspec.Struct, frozen=True, rename="camel"):
    """For `navigator.credentials.get`. Empty `allowCredentials`: the person chooses among what they have."""

    challenge: str
    rp_id: str
    allow_credentials: list[Descriptor]
    user_verification: str = "required"
    timeout: int = TIMEOUT


_RAW = {"client_data_json": "clientDataJSON", "raw_id": "rawId"}


class AttestationResponse(msgspec.Struct, frozen=True, rename=_RAW | {"attestation_object": "attestationObject"}):
    client_data_json: Annotated[str, msgspec.Meta(max_length=4096)]
    attestation_object: Annotated[str, msgspec.Meta(max_length=16384)]
    transports: Annotated[list[Annotated[str, msgspec.Meta(max_length=32)]], msgspec.Meta(max_length=8)] = []


class Attestation(msgspec.Struct, frozen=True, rename=_RAW):
    """A new passkey."""

    id: Id
    raw_id: Id
    type: Kind
    response: AttestationResponse


class AssertionResponse(
    msgspec.Struct, frozen=True, rename=_RAW | {"authenticator_data": "authenticatorData", "user_handle": "userHandle"}
):
    client_data_json: Annotated[str, msgspec.Meta(max_length=4096)]
    authenticator_data: Annotated[str, msgspec.Meta(max_length=2048)]
    signature: Annotated[str, msgspec.Meta(max_length=2048)]
    user_handle: Annotated[str, msgspec.Meta(max_length=88)] | None = None


class Assertion(msgspec.Struct, frozen=True, rename=_RAW):
    """A passkey was used."""

    id: Id
    raw_id: Id
    type: Kind
    response: AssertionResponse


class ClientData(msgspec.Struct, frozen=True, rename={"cross_origin": "crossOrigin"}):
    """What the browser says that was signed (5.8.1), as far as it is read before `webauthn` does."""

    challenge: str
    cross_origin: bool = False
