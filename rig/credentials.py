"""A cluster's certificate authority, its certificates, and kubeconfigs made of them."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 30


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # The traditional form: what the API server's service account keys must be in.
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_bytes(content)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=VALID_DAYS))
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority: ``ca.crt`` and ``ca.key`` in a folder.

    Attributes
    ----------
    folder
        Where it and what it issues are.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Make a new authority, and the key that signs service accounts' tokens (``sa.key``)."""
        folder.mkdir(mode=0o700, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dask-tide rig")])
        certificate = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_secret(folder / "ca.key", _pem(key))
        (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        write_secret(folder / "sa.key", _pem(ec.generate_private_key(ec.SECP256R1())))
        return cls(folder)

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def key(self) -> Path:
        return self.folder / "ca.key"

    def issue(
        self,
        name: str,
        user: str,
        groups: Sequence[str] = (),
        names: Sequence[str] = (),
        folder: Path | None = None,
    ) -> Certificate:
        """Issue a certificate for a server or a client.

        Parameters
        ----------
        name
            The files' name.
        user, groups
            Who Kubernetes takes the holder for.
        names
            Host names and addresses of a server.
        folder
            Where the files go; the authority's folder by default.
        """
        issuer = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        issuer_key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{self.key} is not an elliptic curve's key")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, user))
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            _builder(x509.Name(subject), issuer.subject, key.public_key())
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
            )
        )
        if names:
            alternatives = x509.SubjectAlternativeName([_alternative(each) for each in names])
            builder = builder.add_extension(alternatives, critical=False)
        signed = builder.sign(issuer_key, hashes.SHA256())
        made = Certificate((folder or self.folder) / f"{name}.crt", (folder or self.folder) / f"{name}.key")
        made.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        write_secret(made.key, _pem(key))
        return made


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def kubeconfig(
    path: Path, server: str, authority: Path, user: Certificate | str, namespace: str = "default"
) -> Path:
    """Write a kubeconfig with all that it needs inside, so that it can be copied anywhere.

    Parameters
    ----------
    path
        The file to write.
    server
        The API server's URL.
    authority
        The authority's certificate.
    user
        A client's certificate, or a bearer token.
    namespace
        The namespace for commands that name none.
    """
    secret: dict[str, Any] = (
        {"token": user}
        if isinstance(user, str)
        else {"client-certificate-data": _inline(user.certificate), "client-key-data": _inline(user.key)}
    )
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "rig", "cluster": {"server": server, "certificate-authority-data": _inline(authority)}}
        ],
        "users": [{"name": "rig", "user": secret}],
        "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": "rig", "namespace": namespace}}],
        "current-context": "rig",
    }
    # JSON is YAML: no dependency for writing it.
    write_secret(path, json.dumps(content, indent=1).encode())
    return path
