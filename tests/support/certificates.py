"""TLS certificates for servers on this machine, made when a test starts."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.signing_keys import ec_key, private_pem


def certified(folder: Path) -> Path:
    """Write the key `privkey.pem` and a self-signed certificate for this machine; return the certificate."""
    key, now = ec_key("server"), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    (folder / "privkey.pem").write_bytes(private_pem(key))
    (folder / "fullchain.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return folder / "fullchain.pem"
