"""Certificates for mutual TLS: an authority for one cluster alone, and the one certificate it signs.

Dask lets everybody in who has a certificate of its authority, whatever their name. So there is one
authority per cluster, and its key is thrown away once it has signed. Needs ``cryptography``.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass, field

from dask_tide.errors import ConfigError
from dask_tide.providers.registry import installing

__all__ = ["Certificates", "host_names", "make_certificates"]

#: Clocks of nodes may be behind ours.
_SKEW = dt.timedelta(minutes=5)


@dataclass(frozen=True)
class Certificates:
    """What scheduler, workers and clients need, PEM.

    Attributes
    ----------
    ca
        The authority's certificate.
    certificate, key
        Signed by it, for servers and clients.
    """

    ca: str
    certificate: str
    key: str = field(repr=False)


def host_names(name: str, namespace: str) -> list[str]:
    """Names under which the scheduler is reached."""
    service = f"{name}-scheduler"
    inside = f"{service}.{namespace}"
    return [service, inside, f"{inside}.svc", f"{inside}.svc.cluster.local", "localhost"]


def make_certificates(name: str, namespace: str, *, days: int = 3650) -> Certificates:
    """Make an authority and a certificate.

    Parameters
    ----------
    name, namespace
        The cluster's.
    days
        How long they are valid.

    Raises
    ------
    ConfigError
        If ``cryptography`` is not installed.
    """
    try:
        from cryptography import x509
    except ImportError as error:
        expected = f"'secret' or 'cert-manager', or the package cryptography; {installing('kubernetes')}"
        raise ConfigError("security.tls.source", "generated", expected) from error
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def subject(common_name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])

    def begun(of: x509.Name, by: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(of)
            .issuer_name(by)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + dt.timedelta(days=days))
            # Python 3.13 demands both of every certificate.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    def usage(*, signs: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=True,
            key_encipherment=not signs,
            key_cert_sign=signs,
            crl_sign=signs,
            content_commitment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )

    authority_key = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = subject(f"{name}-ca")
    authority = (
        begun(issuer, issuer, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(signs=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    alternatives: list[x509.GeneralName] = [x509.DNSName(host) for host in host_names(name, namespace)]
    alternatives.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    certificate = (
        begun(subject(f"{name}-scheduler"), issuer, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return Certificates(
        ca=authority.public_bytes(pem).decode(),
        certificate=certificate.public_bytes(pem).decode(),
        key=key.private_bytes(
            pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        ).decode(),
    )
