"""How the program connects to Kafka: the one place that knows of TLS and of logging in.

Law: who is refused (the broker's certificate, the program's, or its login) is told so in one line, and does not try
again; only a broker that is away is waited for.
"""

import asyncio
import logging
import ssl
from dataclasses import dataclass, field
from typing import Any, Final, Self

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaError, SaslAuthenticationFailed, UnsupportedSaslMechanismError
from aiokafka.protocol.metadata import MetadataRequest
from faust import SASLCredentials, SSLCredentials

from streams.settings import Settings, variable

_ANSWER_MS: Final = 5_000
_CLOSE_S: Final = 1.0
_EXPIRED: Final = 10
_OTHER_NAME: Final = (62, 64)
"""OpenSSL's codes of what is wrong with a certificate: it is for another host name, for another address."""

# Of each request that it sends, aiokafka tells everything when it debugs: that of a login holds the password.
logging.getLogger("aiokafka.conn").addFilter(lambda record: record.levelno > logging.DEBUG)


class RefusedError(Exception):
    """A connection that will not come to be, however often it is tried; the message says what to do."""


@dataclass(frozen=True)
class Connection:
    """What each client of Kafka is given. `address` is host:port[,host:port]; an address alone: no TLS and no login."""

    address: str
    protocol: str = "PLAINTEXT"
    mechanism: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    context: ssl.SSLContext | None = None

    @classmethod
    def to(cls, broker: "Broker") -> "Connection":
        """Return the connection to what is an address or one already."""
        return cls(broker) if isinstance(broker, str) else broker

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the connection that the settings ask for. Raises RefusedError if their files cannot be used."""
        return cls(
            settings.broker,
            settings.security_protocol,
            settings.sasl_mechanism,
            settings.sasl_username,
            settings.secret("sasl_password"),
            _context(settings) if settings.security_protocol.endswith("SSL") else None,
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of every client of aiokafka: where to connect to, and how."""
        return {"bootstrap_servers": self.address, **self._security}

    @property
    def _security(self) -> dict[str, Any]:
        return {
            "security_protocol": self.protocol,
            "ssl_context": self.context,
            "sasl_mechanism": self.mechanism,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
        }

    @property
    def credentials(self) -> SASLCredentials | SSLCredentials | None:
        """The same for Faust."""
        if self.mechanism is not None:
            return SASLCredentials(
                username=self.username, password=self.password, ssl_context=self.context, mechanism=self.mechanism
            )
        return SSLCredentials(self.context) if self.context is not None else None

    async def knock(self) -> None:
        """Connect as every client will, to the first address that answers.

        Raises RefusedError; ValueError if it is no list of addresses; OSError or KafkaError if none answers.
        """
        failed: OSError | KafkaError | None = None
        for host, port, _ in collect_hosts(self.address, randomize=False):
            try:
                await self._nodes(host, port)
                return
            except (OSError, KafkaError) as error:
                failed = error
        assert failed is not None
        raise failed

    async def knock_at_nodes(self) -> None:
        """Connect to every node by the address that it tells clients to go on by. Raises as `knock` does."""
        host, port, _ = collect_hosts(self.address)[0]
        for node in await self._nodes(host, port):
            await self._nodes(*node)

    async def _nodes(self, host: str, port: int) -> list[tuple[str, int]]:
        """Return the addresses of all nodes, as one of them tells them."""
        closing: list[Any] = []  # aiokafka closes one itself that is refused, and tells nobody when that is done
        try:
            connection = await create_conn(
                host,
                port,
                request_timeout_ms=_ANSWER_MS,
                on_close=lambda one, _: closing.append(one),
                **self._security,
            )
            try:
                answer = await connection.send(MetadataRequest([]))
            finally:
                connection.close()
            return [(node[1], node[2]) for node in answer.brokers]
        except (OSError, KafkaError) as error:
            if refusal := self._refusal(error, f"Kafka at {host}:{port}"):
                raise RefusedError(refusal) from None
            raise
        except ValueError:  # how aiokafka says that a proof is wrong
            raise RefusedError(
                f"Kafka at {host}:{port} does not prove that it knows the user's password: is it the right broker?"
            ) from None
        finally:
            for one in closing:
                await asyncio.wait({one.close()}, timeout=_CLOSE_S)

    def _refusal(self, error: Exception, who: str) -> str | None:
        """Return why this is final, and what to do; None if the broker is only away."""
        match error:
            case SaslAuthenticationFailed():
                return (
                    f"{who} refuses the login of {self.username!r} by {self.mechanism}: look at "
                    f"{variable('sasl_username')} and {variable('sasl_password')}, and whether the user exists there"
                )
            case UnsupportedSaslMechanismError():
                return f"{who} knows no login by {self.mechanism}: take another {variable('sasl_mechanism')}"
        tls = error if isinstance(error, ssl.SSLError) else error.__cause__
        if isinstance(tls, ssl.SSLCertVerificationError):
            return f"the certificate of {who} {_wrong_with(tls)}"
        if isinstance(tls, ssl.SSLError) and "ALERT" in (tls.reason or ""):
            return (
                f"{who} refuses the certificate of this program ({_words(tls)}): let {variable('ssl_certificate')} "
                "name one that it accepts"
            )
        if isinstance(tls, ssl.SSLError) and tls.reason == "WRONG_VERSION_NUMBER":
            return f"{who} does not speak TLS: take another port, or another {variable('security_protocol')}"
        return None


Broker = Connection | str


def _context(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca)
    except OSError as error:
        raise RefusedError(_unusable("ssl_ca", settings.ssl_ca, error)) from None
    if settings.ssl_certificate is not None:
        # Without a password OpenSSL would ask for one on the terminal, and wait.
        password = settings.secret("ssl_key_password") or ""
        try:
            context.load_cert_chain(settings.ssl_certificate, settings.ssl_key, lambda: password)
        except OSError as error:
            raise RefusedError(_unusable("ssl_certificate", settings.ssl_certificate, error)) from None
    return context


def _unusable(name: str, path: Any, error: OSError) -> str:
    return f"{variable(name)}={str(path)!r} cannot be used: {_words(error)}; PEM is needed, and a key that fits"


def _wrong_with(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return "has expired: renew it there"
    if error.verify_code in _OTHER_NAME:
        return f"is for another host ({error.verify_message}): connect by a name that it has"
    return f"is not trusted ({error.verify_message}): let {variable('ssl_ca')} name the file of who signed it"


def _words(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else error.strerror or type(error).__name__
