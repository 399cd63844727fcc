"""A broker with TLS and logins, the certificates for it, and what a client needs to be let in."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from streams.kafka.broker import HOST, EmbeddedBroker, _free_port

USER = "counter"
PASSWORD = "pass-word-canary-93f1"
LISTENERS = {
    "TLS": "SSL", "MUTUAL": "SSL", "EXPIRED": "SSL", "ELSEWHERE": "SSL", "ASIDE": "SSL",
    "LOGIN": "SASL_PLAINTEXT", "BOTH": "SASL_SSL",
}  # fmt: skip
"""Name -> Kafka's protocol. All but ELSEWHERE have a certificate of HOST, and that of EXPIRED has run out. ASIDE tells
clients to go on by a name that it has no certificate of."""


class Papers:
    """Certificates, each a PEM file in a folder: of an authority, of another one, of the broker, and of a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = trustme.CA()
        self.ca = self._write("ca", self._authority.cert_pem.bytes())
        self.other_ca = self._write("other-ca", trustme.CA().cert_pem.bytes())
        self.broker = self.issue("broker", HOST)
        self.elsewhere = self.issue("elsewhere", "kafka.example.com")
        long_ago = datetime.now(UTC) - timedelta(days=9)
        self.expired = self.issue("expired", HOST, not_before=long_ago, not_after=long_ago + timedelta(days=8))
        self.client = self.issue("client", "counter.example.com")
        self.stranger = self.issue("stranger", "counter.example.com", authority=trustme.CA())

    def issue(self, name: str, host: str, authority: trustme.CA | None = None, **times: datetime) -> Path:
        """Write key and chain into one file; Java reads keys of PKCS 8 only."""
        made = (authority or self._authority).issue_cert(host, **times)
        key = load_pem_private_key(made.private_key_pem.bytes(), None)
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self._write(name, text + b"".join(part.bytes() for part in made.cert_chain_pems))

    def lock(self, paper: Path, password: str) -> Path:
        """Write the key of a file into one of its own, encrypted."""
        key = load_pem_private_key(paper.read_bytes(), None)
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode()))
        return self._write(f"{paper.stem}-key", text)

    def _write(self, name: str, content: bytes) -> Path:
        path = self.folder / f"{name}.pem"
        path.write_bytes(content)
        return path


def properties(papers: Papers, ports: dict[str, int]) -> dict[str, str]:
    """Kafka's settings for all LISTENERS beside the one without TLS."""
    own = dict.fromkeys(("TLS", "MUTUAL", "ASIDE", "BOTH"), papers.broker)
    keys = own | {"EXPIRED": papers.expired, "ELSEWHERE": papers.elsewhere}
    addresses = [f"{name}://{{host}}:{port}" for name, port in ports.items()]
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    found = {
        "listeners": ",".join(["PLAINTEXT://{host}:{port}", "CONTROLLER://{host}:{controller_port}", *addresses]),
        "advertised.listeners": ",".join(["PLAINTEXT://{host}:{port}", *addresses]).replace(
            "ASIDE://{host}", "ASIDE://localhost"
        ),
        "listener.security.protocol.map": ",".join(
            f"{name}:{protocol}"
            for name, protocol in (LISTENERS | {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}).items()
        ),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.mutual.ssl.client.auth": "required",
    }
    for name, path in keys.items():
        prefix = f"listener.name.{name.lower()}.ssl"
        found |= {f"{prefix}.keystore.type": "PEM", f"{prefix}.keystore.location": str(path)}
        found |= {f"{prefix}.truststore.type": "PEM", f"{prefix}.truststore.location": str(papers.ca)}
    for name in ("login", "both"):
        prefix = f"listener.name.{name}"
        found[f"{prefix}.plain.sasl.jaas.config"] = f'{plain} user_{USER}="{PASSWORD}";'
        for mechanism in ("scram-sha-256", "scram-sha-512"):
            found[f"{prefix}.{mechanism}.sasl.jaas.config"] = scram
    return found


def add_user(bootstrap: str) -> None:
    """Let USER log in by SCRAM; by PLAIN the broker knows it from its settings."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        change = UserScramCredentialUpsertion(USER, ScramCredentialInfo(mechanism, 4_096), PASSWORD.encode())
        for done in admin.alter_user_scram_credentials([change]).values():
            done.result(20)


class SecureBroker:
    """An EmbeddedBroker with all LISTENERS, and the settings that let a client in."""

    def __init__(self, broker: EmbeddedBroker, papers: Papers, ports: dict[str, int]) -> None:
        self.broker = broker
        self.papers = papers
        self._ports = ports

    def settings(self, listener: str, **others: Any) -> dict[str, str]:
        """Return settings that are right for a listener, but for others."""
        protocol = LISTENERS[listener]
        found: dict[str, Any] = {"broker": f"{HOST}:{self._ports[listener]}", "security_protocol": protocol}
        if protocol.endswith("SSL"):
            found["ssl_ca"] = self.papers.ca
        if protocol.startswith("SASL"):
            found |= {"sasl_mechanism": "PLAIN", "sasl_username": USER, "sasl_password": PASSWORD}
        if listener == "MUTUAL":
            found["ssl_certificate"] = self.papers.client
        return {name: str(value) for name, value in (found | others).items() if value is not None}


@contextmanager
def secure_broker(folder: Path) -> Iterator[SecureBroker]:
    papers = Papers(folder)
    ports: dict[str, int] = {}
    for name in LISTENERS:
        ports[name] = _free_port(*ports.values())
    port = _free_port(*ports.values())
    with EmbeddedBroker(port, folder / "kafka", properties=properties(papers, ports)) as broker:
        add_user(broker.bootstrap)
        yield SecureBroker(broker, papers, ports)
