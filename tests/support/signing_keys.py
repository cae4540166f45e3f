"""Keys and signed tokens for tests, and an issuer that serves its public keys over HTTP."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SECRET = "a-secret-of-at-least-32-bytes-length"  # noqa: S105 - used by tests only
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def rsa_key(name: str = "", bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return an RSA key: the same one for the same *name*, as generating one is slow."""
    del name
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(name: str = "") -> ec.EllipticCurvePrivateKey:
    """Return a P-256 key: the same one for the same *name*."""
    del name
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(key: Private) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: Private) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def token(key: Any = SECRET, algorithm: str = "HS256", *, kid: str | None = None, **claims: object) -> str:
    """Return a token for `alice` that is valid for a day, with these claims; a claim of None is left out."""
    all_claims = {"sub": "alice", "exp": int(time.time()) + 86_400, **claims}
    given = {name: value for name, value in all_claims.items() if value is not None}
    return jwt.encode(given, key, algorithm, headers={"kid": kid} if kid else None)


def public_jwk(key: Private, kid: str | None = None, **more: object) -> dict[str, Any]:
    """Return the public key as a JSON Web Key, with the fields *more*."""
    if isinstance(key, rsa.RSAPrivateKey):
        jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    jwk.pop("key_ops", None)
    return {**jwk, **({"kid": kid} if kid else {}), **more}


class Issuer:
    """Serves `body` with `status`, and counts the requests in `asked`."""

    def __init__(self) -> None:
        self.body = b"{}"
        self.status = 200
        self.asked = 0
        self.url = ""

    def offer(self, *keys: dict[str, Any]) -> None:
        self.body = json.dumps({"keys": keys}).encode()


@contextmanager
def issuing(*keys: dict[str, Any]) -> Iterator[Issuer]:
    """Serve these public keys on a free port of this machine until the end of the block."""
    issuer = Issuer()
    issuer.offer(*keys)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            self.send_response(issuer.status)
            self.send_header("Content-Length", str(len(issuer.body)))
            if issuer.status in {301, 302}:
                self.send_header("Location", issuer.url)
            self.end_headers()
            self.wfile.write(issuer.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer.url = f"http://127.0.0.1:{server.server_port}/jwks.json"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
