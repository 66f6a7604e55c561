"""Access to Temporal: TLS, what follows a rotation on disk, and what an operator reads when it does not work."""

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import os
import shutil
import signal
import socket
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from api import SECRET, assert_problem, eventually, order, service
from commands import RUST, one_line, temporal_api
from proxy import listening
from temporal_api.app import create_app
from temporal_api.dev.server import DevServer, free_port
from temporal_api.serving import RECEIVE_BYTES, listen, serving
from temporal_api.settings import Settings, SettingsError, TLSFilesError, from_env
from temporal_api.temporal import access
from temporal_api.worker import create_worker
from temporal_api.worker.run import run_worker

pytestmark = pytest.mark.anyio


def issue(folder: Path, lifetime: datetime.timedelta = datetime.timedelta(1)) -> Path:
    """A folder with an authority, and certificates by it for a server at 127.0.0.1 and, for so long, for a client."""
    now = datetime.datetime.now(datetime.UTC)
    authority = ec.generate_private_key(ec.SECP256R1())
    for name in ("ca", "server", "client"):
        key = authority if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        subject, issuer = (
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{n} of {folder.name}")]) for n in (name, "ca")
        )
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        until = now + (lifetime if name == "client" else datetime.timedelta(1))
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(until)
        builder = builder.add_extension(x509.BasicConstraints(name == "ca", None), critical=True)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        certificate = builder.sign(authority, hashes.SHA256())
        folder.joinpath(f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        folder.joinpath(f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return folder


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates that are valid for a day."""
    return issue(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def next_pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of another authority."""
    return issue(tmp_path_factory.mktemp("next"))


class Gate:
    """The dev server behind a proxy that speaks TLS, and may ask for a client's certificate."""

    def __init__(self, address: str, pki: Path) -> None:
        self._target = address.rpartition(":")
        self._pki = pki
        self._links: set[asyncio.StreamWriter] = set()
        self.address = ""
        self.trust()

    def trust(self, *authorities: Path) -> None:
        """From now on, ask for a client's certificate by one of these; without any, for none."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._pki / "server.pem", self._pki / "server.key")
        context.set_alpn_protocols(["h2"])
        context.num_tickets = 0  # a resumed session would spare the client its certificate
        for authority in authorities:
            context.load_verify_locations(authority / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED if authorities else ssl.CERT_NONE
        self._context = context

    def sever(self) -> None:
        """Close every connection."""
        for link in list(self._links):
            link.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward a connection, if its handshake succeeds."""

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
            writer.transport.abort()

        with contextlib.suppress(OSError):
            await writer.start_tls(self._context)
            self._links.add(writer)
            inner_reader, inner_writer = await asyncio.open_connection(self._target[0], int(self._target[2]))
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        self._links.discard(writer)
        writer.transport.abort()


@asynccontextmanager
async def behind_tls(address: str, pki: Path, *trusted: Path) -> AsyncIterator[Gate]:
    """Such a proxy, with the server's certificate of `pki`."""
    gate = Gate(address, pki)
    gate.trust(*trusted)
    async with listening(gate.accept) as gate.address:
        try:
            yield gate
        finally:
            gate.sever()


def mutual(pki: Path, ca: Path | None = None) -> dict[str, str]:
    """The settings that name the certificates in a folder."""
    return {
        "TEMPORAL_TLS_SERVER_CA_CERT_PATH": str((ca or pki) / "ca.pem"),
        "TEMPORAL_TLS_CLIENT_CERT_PATH": str(pki / "client.pem"),
        "TEMPORAL_TLS_CLIENT_KEY_PATH": str(pki / "client.key"),
    }


async def answered(address: str, **environ: str) -> list[int]:
    """How a service with these settings places an order, and whether it is ready and alive."""
    async with service(TEMPORAL_ADDRESS=address, RPC_TIMEOUT_SECONDS="3", **environ) as http:
        placed, ready, live = await asyncio.gather(
            http.post("/api/v1/orders", json=order()), http.get("/health/ready"), http.get("/health/live")
        )
        if placed.status_code != 201:
            assert_problem(placed, 503, "temporal_connection_error")
        return [placed.status_code, ready.status_code, live.status_code]


async def test_tls(dev_server: DevServer, pki: Path) -> None:
    """With the authority as a file or as text, and the certificate that the server wants; else 503, and still alive."""
    ca, text = str(pki / "ca.pem"), (pki / "ca.pem").read_text()
    async with behind_tls(dev_server.address, pki) as one, behind_tls(dev_server.address, pki, pki) as two:
        right = await asyncio.gather(
            answered(one.address, TEMPORAL_TLS_SERVER_CA_CERT_PATH=ca),
            answered(one.address, TEMPORAL_TLS_SERVER_CA_CERT_DATA=text, TEMPORAL_API_KEY="any"),
            answered(two.address, **mutual(pki)),
        )
        wrong = await asyncio.gather(
            answered(one.address, TEMPORAL_TLS="true"),  # of an unknown authority
            answered(one.address),
            answered(two.address, TEMPORAL_TLS_SERVER_CA_CERT_PATH=ca),
            answered(dev_server.address, TEMPORAL_TLS="true"),
        )

    assert [[201, 200, 200]] * 3 == right
    assert [[503, 503, 200]] * 4 == wrong


# --- rotation ---


def put(source: Path, target: Path, *names: str) -> None:
    """Put files in the place of others, each at once."""
    for name in names:
        os.replace(shutil.copy(source / name, target / f"{name}.new"), target / name)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of new files that cannot be used."""
    return [text for record in caplog.records if "stay as they were" in (text := record.getMessage())]


async def test_an_expired_certificate_is_replaced(
    dev_server: DevServer, tmp_path: Path, next_pki: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """Half of a new pair changes nothing and is told once; with the other half API and worker are back, not restarted.

    The server then trusts the old authority no more, and an order is delivered.
    """
    monkeypatch.setattr(access, "REREAD_SECONDS", 0.05)
    caplog.set_level("INFO", access.__name__)
    old, connected = issue(tmp_path, datetime.timedelta(seconds=5)), asyncio.Event()
    queue = str(uuid.uuid4())

    def create(client: Client) -> Worker:
        connected.set()
        return create_worker(client, queue)

    async with behind_tls(dev_server.address, next_pki, old, next_pki) as gate, asyncio.TaskGroup() as workers:
        environ = {"TEMPORAL_ADDRESS": gate.address, "ORDERS_TASK_QUEUE": queue, **mutual(old, next_pki)}
        worker = workers.create_task(run_worker(from_env(environ, keys_needed=False), create))
        await connected.wait()  # before the certificate expires
        async with service(RPC_TIMEOUT_SECONDS="2", **environ) as http:

            async def placed() -> str:
                return (await http.post("/api/v1/orders", json=order())).headers.get("location", "")

            async def refused() -> bool:
                gate.sever()
                return not await placed()

            await eventually(refused)
            put(next_pki, old, "client.pem")
            await eventually(lambda: "is not the key" in caplog.text)
            assert await refused()
            put(next_pki, old, "client.key")
            await eventually(lambda: caplog.text.count("connecting anew") == 2)
            gate.trust(next_pki)
            gate.sever()
            path = await eventually(placed)

            async def delivered() -> bool:
                return (await http.get(path)).json().get("order", {}).get("status") == "delivered"

            await eventually(delivered)
        worker.cancel()

    told = [text.rpartition("stay as they were: ")[2] for text in warnings(caplog) if "expired" not in text]
    assert 0 < len(told) <= 2, told  # once of each
    assert {"TEMPORAL_TLS_CLIENT_KEY_PATH: is not the key of the client's certificate"} == set(told)


NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr;
events {{}}
http {{
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  log_format key '$http_authorization';
  access_log {folder}/keys key;
  map $http_authorization $known {{ default 0; "Bearer key-1" 1; "Bearer key-2" 1; }}
  server {{
    listen 127.0.0.1:{port} http2;
    location / {{
      error_page 401 = @denied;
      if ($known = 0) {{ return 401; }}
      grpc_pass grpc://{address};
    }}
    location /temporal.api.operatorservice {{
      default_type application/grpc;
      add_header grpc-status 7;
      add_header grpc-message "Request unauthorized.";
      return 204;
    }}
    location @denied {{
      default_type application/grpc;
      add_header grpc-status 16 always;
      add_header grpc-message "API key has expired" always;
      return 204;
    }}
  }}
}}
"""


@pytest.fixture
async def with_keys(dev_server: DevServer, tmp_path: Path) -> AsyncIterator[str]:
    """The dev server behind an nginx that takes the API keys `key-1` and `key-2`, and notes each in the file `keys`.

    No key lets anybody add search attributes.
    """
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed, and Temporal's dev server checks no API key")
    port = free_port()
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, port=port, address=dev_server.address))
    nginx = await asyncio.create_subprocess_exec(program, "-c", tmp_path / "nginx.conf", "-e", "stderr")
    try:

        async def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        await eventually(listens)
        yield f"127.0.0.1:{port}"
    finally:
        nginx.terminate()
        await nginx.wait()


def profile(folder: Path, text: str) -> dict[str, str]:
    """Write a profile file that says this, without TLS; the setting that names it."""
    (folder / "new").write_text(f"[profile.default]\n{text}\n[profile.default.tls]\ndisabled = true\n")
    os.replace(folder / "new", folder / "temporal.toml")
    return {"TEMPORAL_CONFIG_FILE": str(folder / "temporal.toml")}


async def test_an_api_key_in_a_file_is_followed(
    with_keys: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """No key in the file, half a file, or a key that is refused changes nothing and is told once; a new one is sent.

    A namespace that the file names by then is for the next start.
    """
    monkeypatch.setattr(access, "REREAD_SECONDS", 0.05)
    environ = {"TEMPORAL_ADDRESS": with_keys, **profile(tmp_path, 'api_key = "key-1"')}
    async with service(**environ) as http:
        for number, text in enumerate(("", 'api_key = "key-0"', 'api_key = "key-'), start=1):
            profile(tmp_path, text)
            told = await eventually(lambda: warnings(caplog)[number - 1 :])  # noqa: B023
            assert 201 == (await http.post("/api/v1/orders", json=order())).status_code, told
        assert "Bearer key-2" not in (tmp_path / "keys").read_text()
        profile(tmp_path, 'api_key = "key-2"\nnamespace = "nobody"')

        async def sent() -> bool:
            assert 201 == (await http.post("/api/v1/orders", json=order())).status_code
            return (tmp_path / "keys").read_text().splitlines()[-1] == "Bearer key-2"

        await eventually(sent)

    begins = ["TEMPORAL_CONFIG_FILE: has no api_key", "TEMPORAL_API_KEY: not accepted", "TEMPORAL_CONFIG_FILE: "]
    for begin, said in zip(begins, warnings(caplog), strict=True):
        assert f"stay as they were: {begin}" in said


# --- what an operator reads ---


async def test_a_command_that_cannot_begin_ends_with_one_line(dev_server: DevServer, pki: Path, next_pki: Path) -> None:
    """The exit code is 2 for a wrong setting, and 1 for what the setting names and does not work."""
    nobody = {"TEMPORAL_ADDRESS": dev_server.address, "TEMPORAL_NAMESPACE": "nobody"}
    nowhere = {"TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}"}
    mixed = {**mutual(pki), "TEMPORAL_TLS_CLIENT_KEY_PATH": str(next_pki / "client.key")}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        busy = str(listener.getsockname()[1])
        metrics = {"METRICS_PORT": busy, "TEMPORAL_ADDRESS": dev_server.address, "PORT": str(free_port())}
        await one_line(
            ("serve", {"HOST": "x86_64-conda-linux-gnu"}, 2, "HOST: 'x86_64-conda-linux-gnu' is no address"),
            ("serve", {"PORT": busy, "HOST": "0.0.0.0"}, 1, f"PORT: cannot listen on 0.0.0.0 port {busy}: Address"),  # noqa: S104
            *((part, metrics, 1, "METRICS_PORT: cannot listen on 127.0.0.1") for part in ("serve", "worker", "dev")),
            ("serve", mixed, 1, "TEMPORAL_TLS_CLIENT_KEY_PATH: is not the key"),
            *(
                (part, nobody, 1, "TEMPORAL_NAMESPACE: Namespace nobody is not found")
                for part in ("setup", "worker", "dev")
            ),
            ("setup", {**nobody, "TEMPORAL_NAMESPACE": "n" * 2000}, 1, "TEMPORAL_NAMESPACE: Namespace length"),
            ("dev", nowhere, 1, "TEMPORAL_ADDRESS: nothing listens at 127"),
            # The SDK takes no such host, and does not say so as it says that there is no connection.
            *(
                (part, {"TEMPORAL_ADDRESS": "xn--:7233"}, 1, "TEMPORAL_ADDRESS: no connection to xn--:7233 can be")
                for part in ("setup", "dev")
            ),
            JWT_SECRET=SECRET,
        )


@pytest.mark.parametrize("host", ["http://0.0.0.0", "[::1]", "nobody.invalid", "a..b", "256.1.1.1"])
def test_a_host_that_is_no_address(host: str) -> None:
    """It is a wrong setting."""
    with pytest.raises(SettingsError, match=r"^HOST: .* is no address"):
        listen(host, 0)


def test_an_address_of_another_machine() -> None:
    """It is named with what the system says."""
    with pytest.raises(RuntimeError, match=r"^HOST: cannot listen on 203.0.113.7 port 80: ."):
        listen("203.0.113.7", 80)


async def test_a_temporal_that_cannot_be_used(dev_server: DevServer, pki: Path, next_pki: Path) -> None:
    """The setting to look at is named: the address, or the part of TLS that does not fit."""
    ca = "TEMPORAL_TLS_SERVER_CA_CERT_PATH"
    closed = "TEMPORAL_ADDRESS: the server closes the connection; if it always does, TEMPORAL_TLS"
    async with behind_tls(dev_server.address, pki) as one, behind_tls(dev_server.address, pki, pki) as two:
        right = {"TEMPORAL_ADDRESS": one.address, ca: str(pki / "ca.pem")}
        cases = [
            ({"TEMPORAL_ADDRESS": "nobody.invalid:7233"}, "TEMPORAL_ADDRESS: the name of nobody"),
            ({"TEMPORAL_ADDRESS": dev_server.address, "TEMPORAL_TLS": "true"}, "TEMPORAL_TLS: the server does not"),
            ({**right, "TEMPORAL_TLS_SERVER_NAME": "a.example"}, "TEMPORAL_TLS_SERVER_NAME: "),
            ({**right, ca: str(next_pki / "ca.pem")}, f"{ca}: "),
            ({**right, "TEMPORAL_ADDRESS": two.address}, closed),
            ({"TEMPORAL_ADDRESS": one.address}, closed),
        ]
        for environ, begin in cases:
            with pytest.raises(access.AccessError) as caught:
                await access.connect(from_env(environ, keys_needed=False).temporal)
            assert str(caught.value).startswith(begin), caught.value
            assert not any(word in str(caught.value) for word in RUST), caught.value


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (
            "INVALID_ARGUMENT",
            "cannot have more than 10 search attribute of type Keyword.",
            "Temporal: cannot have more",
        ),
        ("UNAVAILABLE", "no healthy upstream", "TEMPORAL_ADDRESS: no healthy upstream"),
        (None, "Failed client connect: InvalidUri(InvalidUriChar)", "TEMPORAL_ADDRESS: no connection to"),
        (None, "Os { code: 104, kind: ConnectionReset }", "TEMPORAL_ADDRESS: the server closes the connection"),
    ],
)
def test_a_cause_names_what_to_look_at(status: str | None, text: str, told: str) -> None:
    """The address only where there is no connection: what Temporal itself refuses is told as its own words."""
    error = RPCError(text, RPCStatusCode[status], b"") if status else RuntimeError(text)
    assert str(access.cause(error)).startswith(told)


async def test_a_search_attribute_of_another_type_is_told(client: Client) -> None:
    """`setup` does not say that all is there when lists would not work."""
    words = {"Words": IndexedValueType.INDEXED_VALUE_TYPE_TEXT}
    request = AddSearchAttributesRequest(namespace=client.namespace, search_attributes=words)
    await client.operator_service.add_search_attributes(request)
    for names in (["Words"], ["OrderOwner", "Words", "Missing"]):
        with pytest.raises(access.AccessError, match=r"^search attribute Words: has another type, expected Keyword"):
            await access.add_search_attributes(client, names)


OF_ANOTHER_KIND = """
-----BEGIN CERTIFICATE-----
MIIBcDCCARWgAwIBAgIUPBvoT2MIZdGj7+/ImXuHnpRNWtwwCgYIKoEcz1UBg3Uw
DDEKMAgGA1UEAwwBeDAgFw0yNjExMjYwNDU2MjRaGA8yMTI2MTEwMjA0NTYyNFow
DDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqBHM9VAYItA0IABAxPHcK/KMdP
GDEYgDDjT3MBVJ2V5ic6JJZBz7kKFAZFvUhEpilhhfuDh63Un1DYq5cllVBseJFU
GVoLocW+etGjUzBRMB0GA1UdDgQWBBTXRZcIEatTjBPjkxz2iQr4QnMkDjAfBgNV
HSMEGDAWgBTXRZcIEatTjBPjkxz2iQr4QnMkDjAPBgNVHRMBAf8EBTADAQH/MAoG
CCqBHM9VAYN1A0kAMEYCIQD1x3U+6QJmRBqeplyfx9cSCWVO0GRFYZKP/Y+pbPsK
9gIhAN2T0xfVwWxdzoWON4MYghaohYSTI/o/ik64encr5VJ9
-----END CERTIFICATE-----
"""
"""Its key is on the curve SM2, which nothing here can use."""


def test_tls_files_that_cannot_be_used(tmp_path: Path, pki: Path) -> None:
    """What is wrong with them is told before anybody connects, by the name in the profile where they stand there."""
    expired, half, file = issue(tmp_path, -datetime.timedelta(hours=1)), tmp_path / "half.pem", tmp_path / "profile"
    odd = tmp_path / "odd.pem"
    half.write_text((pki / "client.pem").read_text()[:200])
    cases = [
        (mutual(expired), "TEMPORAL_TLS_CLIENT_CERT_PATH: the certificate has expired on 2"),
        ({**mutual(pki), "TEMPORAL_TLS_CLIENT_CERT_PATH": str(half)}, "TEMPORAL_TLS_CLIENT_CERT_PATH: expected a "),
        (
            {**mutual(pki), "TEMPORAL_TLS_CLIENT_CERT_PATH": str(odd)},
            "TEMPORAL_TLS_CLIENT_KEY_PATH: .* unsupported kind",
        ),
        ({"TEMPORAL_CONFIG_FILE": str(file)}, "TEMPORAL_CONFIG_FILE: tls.client_cert_path: expected a certificate"),
    ]
    odd.write_text(OF_ANOTHER_KIND)
    file.write_text(f'[profile.default.tls]\nclient_cert_path="{half}"\nclient_key_path = "{pki}/client.key"\n')
    for environ, begin in cases:
        with pytest.raises(TLSFilesError, match=begin):
            from_env(environ, keys_needed=False)
    file.write_text('[profile.default.tls]\nclient_cert_path = "/nowhere"\n')
    with pytest.raises(SettingsError, match=r"^TEMPORAL_CONFIG_FILE: tls.client_cert_path: cannot read"):
        from_env({"TEMPORAL_CONFIG_FILE": str(file)}, keys_needed=False)


async def test_an_api_key_that_temporal_refuses(with_keys: str) -> None:
    """The command ends with what Temporal says of the key, or of what the key may do, and not with the key."""
    denied = "TEMPORAL_NAMESPACE, TEMPORAL_API_KEY: permission denied: Request unauthorized.\n"
    await one_line(
        ("worker", {"TEMPORAL_API_KEY": "key-0"}, 1, "TEMPORAL_API_KEY: not accepted: API key has expired\n"),
        ("setup", {"TEMPORAL_API_KEY": "key-1"}, 1, denied),
        TEMPORAL_ADDRESS=with_keys,
        TEMPORAL_TLS="false",
    )


async def test_a_worker_whose_key_expires_says_so(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """The SDK ends it at the next poll, and says only that it has failed: that traceback is left out, no other."""
    log = logging.getLogger("temporalio.worker._worker")

    async def run() -> None:
        status = 'Status { code: Unauthenticated, message: "API key has expired", metadata: MetadataMap { .. } }'
        log.error("Worker failed", exc_info=RuntimeError("Workflow worker failed"))
        try:
            raise RuntimeError("Workflow worker failed") from RuntimeError(f"Poll failure: Unhandled grpc: {status}")
        except RuntimeError as error:
            log.error("Worker failed", exc_info=error)  # as the SDK does
            raise

    worker: Any = SimpleNamespace(run=run)
    with pytest.raises(access.AccessDeniedError, match=r"^TEMPORAL_API_KEY: not accepted: API key has expired$"):
        await run_worker(settings, lambda client: worker)
    assert ["Worker failed"] == [record.message for record in caplog.records if record.name == log.name]


async def test_serve_says_at_once_what_temporal_refuses(
    with_keys: str, dev_server: DevServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused key and a missing namespace are told when it starts, each once, where nobody probes or calls."""
    key = {"TEMPORAL_ADDRESS": with_keys, "TEMPORAL_TLS": "false", "TEMPORAL_API_KEY": "key-0"}
    nobody = {"TEMPORAL_ADDRESS": dev_server.address, "TEMPORAL_NAMESPACE": "nobody"}
    expected = ["TEMPORAL_API_KEY: not accepted: API key", "TEMPORAL_NAMESPACE: Namespace nobody is not found"]
    async with service(**key), service(**nobody):
        await eventually(lambda: all(each in caplog.text for each in expected))

    assert [1, 1] == [caplog.text.count(each) for each in expected], caplog.text


async def test_who_serves_waits_for_temporal() -> None:
    """A Temporal that is not there is told once, in words, and Ctrl-C is a clean end; the worker is alive till then."""
    ports = [free_port(), free_port()]
    environ = {"TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}", "JWT_SECRET": SECRET, "PORT": str(ports[0])}
    async with (
        temporal_api("serve", **environ) as serve,
        temporal_api("worker", METRICS_PORT=str(ports[1]), **environ) as worker,
    ):
        await asyncio.gather(*(each.until("TEMPORAL_ADDRESS: nothing listens") for each in (serve, worker)))
        await asyncio.sleep(2.5)  # a second attempt of the worker, and of the probes
        async with httpx.AsyncClient() as http:
            assert 503 == (await http.get(f"http://127.0.0.1:{ports[0]}/health/ready")).status_code
            assert 200 == (await http.get(f"http://127.0.0.1:{ports[1]}/health/live")).status_code
        for process in (serve, worker):
            assert 0 == await process.end(signal.SIGINT), process.output
            assert 1 == process.output.count("TEMPORAL_ADDRESS"), process.output
            assert not any(word in process.output for word in (*RUST, "Aborted")), process.output


async def test_ctrl_c_before_the_work_is_done() -> None:
    """Exit code 130: a script that goes on after success does not go on."""
    asked = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until the process ends
        writer.close()

    async with (
        listening(silent) as address,
        temporal_api("setup", TEMPORAL_ADDRESS=address) as setup,
        temporal_api("dev", "--once", TEMPORAL_ADDRESS=address) as dev,
    ):
        await eventually(lambda: asked >= 2)
        assert [130, 130] == [await setup.end(signal.SIGINT), await dev.end(signal.SIGINT)]
    assert ["", "Stopped.\n"] == [setup.output, dev.output]


async def test_two_colons_are_ipv6_and_ipv4(settings: Settings) -> None:
    """HOST=:: takes callers of both."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    async with serving(create_app(settings), "::", port), httpx.AsyncClient() as http:
        for host in ("127.0.0.1", "[::1]"):
            assert 200 == (await http.get(f"http://{host}:{port}/health/live")).status_code


def test_a_body_does_not_wait_until_its_head_is_acknowledged() -> None:
    """A client acknowledges after 40 ms: by so much each answer on a connection that is kept would be late."""
    (listener,) = listen("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_a_caller_sends_comes_in_small_pieces() -> None:
    """However fast it sends: a hundred such callers would hold up everybody else with the work of a read of each."""
    (listener,) = listen("127.0.0.1", 0)
    largest = 0
    with listener, socket.create_connection(listener.getsockname()) as sender, listener.accept()[0] as connection:
        sender.setblocking(False)
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sender.send(bytes(65_536))
            largest = max(largest, len(connection.recv(2**20)))
    assert 0 < largest <= 2 * RECEIVE_BYTES, largest
