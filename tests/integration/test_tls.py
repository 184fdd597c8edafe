"""Redis behind TLS: as Heroku has it, with a certificate that nobody signed, and as others do."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import dramatiq
import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from dramatiq import Worker

from tests.integration.command_line import CommandLine
from tests.servers import free_port, temporary_folder
from tests.waiting import eventually
from worker.broker import make_broker
from worker.check import Status, check_deployment
from worker.redis_client import make_redis
from worker.settings import Settings

PASSWORD = "hunter2hunter2"


def sign_own(folder: Path, days: int = 2) -> Path:
    """Write a key and the certificate of 127.0.0.1, signed with itself and good for ``days`` from yesterday."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis of a test")])
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(yesterday)
        .not_valid_after(yesterday + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path = folder / "certificate.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def tls() -> Iterator[tuple[str, Path]]:
    """The URL of a Redis that speaks TLS alone, and its certificate. Valkey's wheel was built without."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        if "CI" in os.environ:
            pytest.fail("no Redis that speaks TLS is installed: apt-get install redis-server")
        pytest.skip("no Redis that speaks TLS is installed")
    with temporary_folder() as folder:
        certificate, port = sign_own(folder), free_port()
        files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(folder / "key.pem")]
        only_tls = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", "--requirepass", PASSWORD]
        server = subprocess.Popen(
            [program, "--bind", "127.0.0.1", *only_tls, *files, "--dir", str(folder), "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        url = f"rediss://:{PASSWORD}@127.0.0.1:{port}/0"
        try:
            with closing(redis.Redis.from_url(url, ssl_ca_certs=str(certificate))) as client:
                eventually(lambda: answers(client))
            yield url, certificate
        finally:
            server.terminate()
            server.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def settings(url: str, **environment: str) -> Settings:
    return Settings.load({"DATABASE_URL": "postgres://h/x", "REDIS_URL": url, **environment})


def asked(url: str, **environment: str) -> str:
    """Return ``""`` where Redis can be asked, else what the error says."""
    with closing(make_redis(settings(url, **environment))) as client:
        try:
            client.ping()
        except redis.RedisError as e:
            return str(e)
    return ""


def test_whose_certificate_is_taken(tls: tuple[str, Path], tmp_path: Path) -> None:
    url, certificate = tls
    assert asked(url, DYNO="attribution.1") == ""
    assert asked(url, REDIS_SSL_VERIFY="no") == ""
    assert asked(f"{url}?ssl_ca_certs={certificate}") == ""
    assert asked(f"{url}?ssl_ca_certs={certificate}", REDIS_SSL_VERIFY="yes") == ""
    for refused in (asked(url), asked(url, DYNO="attribution.1", REDIS_SSL_VERIFY="yes")):
        assert "a certificate that cannot be trusted: self-signed certificate. REDIS_SSL_VERIFY=no" in refused
        assert PASSWORD not in refused
    # Signed by somebody, but not for this name, or not by the one who is named.
    another = asked(f"{url.replace('127.0.0.1', 'localhost')}?ssl_ca_certs={certificate}")
    assert "Hostname mismatch, certificate is not valid for 'localhost'" in another
    (tmp_path / "other").mkdir()
    assert "cannot be trusted" in asked(f"{url}?ssl_ca_certs={sign_own(tmp_path / 'other')}")


def test_commands_and_check_say_which_setting_mends_it(tls: tuple[str, Path], worker: CommandLine) -> None:
    url, _ = tls
    refused = worker("queues", "list", status=2, REDIS_URL=url)
    assert "REDIS_SSL_VERIFY=no" in refused.output
    assert "attribution" in worker("queues", "list", REDIS_URL=url, DYNO="run.1").output
    environment = {**worker.database.environment(), "REDIS_URL": url}
    (found,) = [f for f in check_deployment(environment, folder=Path("/")) if f.name == "redis.reachable"]
    assert found.status is Status.ERROR
    assert "REDIS_SSL_VERIFY=no" in found.found
    assert PASSWORD not in f"{found.found}{found.advice}{refused.output}"
    plain = {**environment, "REDIS_URL": url.replace("rediss://", "redis://")}
    (found,) = [f for f in check_deployment(plain, folder=Path("/")) if f.name == "redis.reachable"]
    assert "rediss:// where it speaks TLS" in found.advice


def test_a_job_goes_its_way_through_tls(tls: tuple[str, Path]) -> None:
    """Through every kind of connection that a worker makes: to send, to wait, to keep its lease."""
    broker = make_broker(settings(tls[0], DYNO="attribution.1"))
    ran: list[str] = []

    @dramatiq.actor(broker=broker, queue_name="attribution")
    def through(word: str) -> None:
        ran.append(word)

    worker = Worker(broker, worker_threads=2, queues={"attribution"})
    worker.start()
    try:
        for word, delay in (("at once", None), ("later", 50)):
            through.send_with_options(args=(word,), tenant_id=uuid4(), delay=delay)
        eventually(lambda: sorted(ran) == ["at once", "later"])
    finally:
        worker.stop()
        broker.close()
