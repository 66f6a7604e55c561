"""Which trace: what callers tell of it reaches the workers' spans, and the service's own spans reach a collector."""

import base64
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import Distribution
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import HeaderCodecBehavior
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import SECRET, SOON, bearer, eventually, order, service
from commands import temporal_api
from temporal_api.app import create_app
from temporal_api.dev.server import DevServer, free_port
from temporal_api.settings import SettingsError, from_env
from temporal_api.temporal.payloads import data_converter
from temporal_api.tracing import trace_context

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

pytestmark = pytest.mark.anyio

needs_otel = pytest.mark.skipif(
    not list(Distribution.discover(name="opentelemetry-exporter-otlp-proto-http")),
    reason="OpenTelemetry comes with the extra `otel`",
)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
KEY = "2026:" + base64.b64encode(b"k" * 32).decode()


# --- what callers tell ---


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ({"traceparent": TRACEPARENT}, {"traceparent": TRACEPARENT}),
        # A later version may say more, and is told on as the version that is known.
        ({"traceparent": f"cc-{TRACE}-{PARENT}-01-more"}, {"traceparent": TRACEPARENT}),
        ({"traceparent": f"{TRACEPARENT}-more"}, {}),
        ({"traceparent": f"ff-{TRACE}-{PARENT}-01"}, {}),
        ({"traceparent": f"00-{TRACE.upper()}-{PARENT}-01"}, {}),
        ({"traceparent": f"00-{'0' * 32}-{PARENT}-01"}, {}),
        ({"traceparent": f"00-{TRACE}-{'0' * 16}-01"}, {}),
        ({"traceparent": "\xff"}, {}),
        # A state is of a trace; baggage needs none.
        ({"traceparent": "nonsense", "tracestate": "a=1", "baggage": "k=v"}, {"baggage": "k=v"}),
        (
            {"traceparent": TRACEPARENT, "tracestate": "a=1 , fw529a3039@dt=x y,,"},
            {"traceparent": TRACEPARENT, "tracestate": "a=1,fw529a3039@dt=x y"},
        ),
        ({"traceparent": TRACEPARENT, "tracestate": "a=1,B=2"}, {"traceparent": TRACEPARENT}),
        ({"traceparent": TRACEPARENT, "tracestate": "a=1,b=2,a=3"}, {"traceparent": TRACEPARENT}),
        (
            {"traceparent": TRACEPARENT, "tracestate": ",".join(f"k{n}=v" for n in range(33))},
            {"traceparent": TRACEPARENT},
        ),
        ({"baggage": 'a=1, b = %C3%BC ;p;q = "no",c=2;p=3;q, d, e=\xe9'}, {"baggage": "a=1,c=2;p=3;q"}),
        ({"baggage": f"a={'x' * 8192}"}, {}),
        ({"baggage": "a=1" + " ;" * 4000}, {}),
    ],
)
def test_only_what_is_valid_is_told_on(told: dict[str, str], kept: dict[str, str]) -> None:
    """W3C Trace Context and Baggage; what is invalid, or too much, is as if it had not come."""
    assert kept == trace_context((name.encode(), value.encode("latin-1")) for name, value in told.items())


def test_headers_that_come_twice() -> None:
    """Lists go on; a request has one parent."""
    state, parent = (b"tracestate", b"a=1"), (b"traceparent", TRACEPARENT.encode())

    assert {"traceparent": TRACEPARENT, "tracestate": "a=1,b=2"} == trace_context([state, parent, (state[0], b"b=2")])
    assert {} == trace_context([parent, parent, state])


# --- workers with the SDK's own interceptor ---


@activity.defn
async def greet(name: str) -> str:
    """Say hello."""
    return f"hello {name}"


@workflow.defn(name="greeting")
class Greeting:
    """Greets, when it is told whom."""

    def __init__(self) -> None:
        self.name = ""

    @workflow.run
    async def run(self) -> str:
        """Wait for a name."""
        await workflow.wait_condition(lambda: bool(self.name))
        return await workflow.execute_activity(greet, self.name, start_to_close_timeout=timedelta(seconds=10))

    @workflow.signal
    def call(self, name: str) -> None:
        """Be told."""
        self.name = name

    @workflow.query
    def called(self) -> str:
        """Whom."""
        return self.name

    @workflow.update
    def rename(self, name: str) -> str:
        """Say a name."""
        return name


@needs_otel
@pytest.mark.parametrize(
    ("keys", "behavior"),
    [
        ("", HeaderCodecBehavior.NO_CODEC),
        (KEY, HeaderCodecBehavior.NO_CODEC),
        (KEY, HeaderCodecBehavior.CODEC),
    ],
    ids=["plain", "encrypted", "encrypted, and headers with it"],
)
async def test_workers_spans_are_in_the_callers_trace(
    dev_server: DevServer, task_queue: str, keys: str, behavior: HeaderCodecBehavior
) -> None:
    """Of workflow, activity, signal, query and update: by the SDK's interceptor, however it treats headers."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from temporalio.contrib.opentelemetry import TracingInterceptor

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = from_env({"JWT_SECRET": SECRET, "PAYLOAD_ENCRYPTION_KEYS": keys})
    client = await Client.connect(
        dev_server.address,
        data_converter=data_converter(settings),
        interceptors=[TracingInterceptor(provider.get_tracer("test"))],
        header_codec_behavior=behavior,
    )
    headers = {**bearer(), "traceparent": TRACEPARENT, "baggage": "tenant=acme"}
    async with (
        Worker(
            client,
            task_queue=task_queue,
            workflows=[Greeting],
            activities=[greet],
            workflow_runner=UnsandboxedWorkflowRunner(),
        ),
        service(TEMPORAL_ADDRESS=dev_server.address, PAYLOAD_ENCRYPTION_KEYS=keys) as http,
    ):
        http.headers.update(headers)
        begun = await http.post("/api/v1/workflows", json={"workflow_type": "greeting", "task_queue": task_queue})
        path = begun.headers["location"]
        renamed = await http.post(f"{path}/updates", json={"update_name": "rename", "update_input": "x"})
        asked = await http.post(f"{path}/query", json={"query_name": "called"})
        await http.post(f"{path}/signal", json={"signal_name": "call", "signal_input": "you"})
        ended = await http.get(f"{path}/result", headers={"Prefer": "wait=30"})

    assert ("x", "", "hello you") == tuple(each.json()["result"] for each in (renamed, asked, ended))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    assert {"RunWorkflow:greeting", "StartActivity:greet", "RunActivity:greet", "HandleSignal:call"} <= spans.keys()
    assert {"HandleQuery:called", "HandleUpdate:rename"} <= spans.keys()
    parents = {name: f"{span.parent.span_id:016x}" for name, span in spans.items()}
    assert PARENT == parents["RunWorkflow:greeting"] == parents["HandleQuery:called"]
    for name in ("HandleSignal:call", "HandleUpdate:rename"):
        (link,) = spans[name].links
        assert PARENT == f"{link.context.span_id:016x}"


# --- the service's own spans ---


class Collector:
    """An OTLP/HTTP collector on this machine, and what it got."""

    def __init__(self) -> None:
        self.address = ""
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []

    def take(self, path: str, kind: str, body: bytes) -> None:
        """Read an export."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        assert ("/v1/traces", "application/x-protobuf") == (path, kind)
        for told in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(values(told.resource.attributes))
            self.spans += [span for scope in told.scope_spans for span in scope.spans]

    async def named(self, *names: str) -> list["Span"]:
        """The first span of each name, once all have come."""

        async def come() -> list["Span"] | None:
            found = [next((span for span in self.spans if span.name == name), None) for name in names]
            return [span for span in found if span is not None] if all(found) else None

        return await eventually(come) or []


def values(attributes: Any) -> dict[str, Any]:
    """OTLP's attributes as Python has them."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that listens."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(
                self.path, self.headers["content-type"], self.rfile.read(int(self.headers["content-length"]))
            )
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    collector.address = f"http://127.0.0.1:{server.server_port}"
    yield collector
    server.shutdown()
    server.server_close()


RPC = "temporal.api.workflowservice.v1.WorkflowService/"


@needs_otel
async def test_a_request_and_its_calls_have_spans(dev_server: DevServer, collector: Collector) -> None:
    """In the caller's trace, in the words of the semantic conventions; the workflow is told of the call's.

    Probes have none, unless they are part of a trace; nor have the calls that no request asked for.
    """
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.address}/"}
    async with service(**environ, ROOT_PATH="/temporal") as http:
        headers = {"traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "tenant=acme", "user-agent": "till"}
        for path in ("/health", "/health/ready", "/health/live", "/metrics", "/temporal/health/live"):
            assert 200 == (await http.get(path)).status_code
        await http.get("/health/live", headers=headers)
        placed = await http.post("/api/v1/orders?", json=order(), headers=headers)
        request, call = await collector.named("POST /api/v1/orders", f"{RPC}StartWorkflowExecution")
        assert ["GET /health/live", call.name, request.name] == [span.name for span in collector.spans]
        client = await Client.connect(dev_server.address)
        started = (await client.get_workflow_handle(placed.json()["workflow_id"]).fetch_history()).events[0]

    assert (bytes.fromhex(TRACE), bytes.fromhex(PARENT)) == (request.trace_id, request.parent_span_id)
    assert (request.trace_id, request.span_id) == (call.trace_id, call.parent_span_id)
    assert (request.SPAN_KIND_SERVER, request.SPAN_KIND_CLIENT) == (request.kind, call.kind)
    assert "a=1" == request.trace_state
    told = values(request.attributes)
    assert {
        "http.request.method": "POST",
        "http.route": "/api/v1/orders",
        "http.response.status_code": 201,
        "url.path": "/api/v1/orders",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": http.base_url.port,
        "client.address": "127.0.0.1",
        "user_agent.original": "till",
        "temporalWorkflowID": placed.json()["workflow_id"],
    } == told
    host, port = dev_server.address.split(":")
    assert {
        "rpc.system.name": "grpc",
        "rpc.method": call.name,
        "rpc.response.status_code": "OK",
        "server.address": host,
        "server.port": int(port),
    } == values(call.attributes)
    assert "temporal-api" == collector.resources[0]["service.name"]
    header = started.workflow_execution_started_event_attributes.header.fields["_tracer-data"]
    assert {
        "traceparent": f"00-{TRACE}-{call.span_id.hex()}-01",
        "tracestate": "a=1",
        "baggage": "tenant=acme",
    } == msgspec.json.decode(header.data)


@needs_otel
async def test_what_goes_wrong_is_told(
    dev_server: DevServer, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """A 404 is no error of the service, only of the call; a 5xx is. The log names the trace that began here.

    Secrets in an address are not told.
    """
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "RPC_TIMEOUT_SECONDS": "1"}
    caplog.set_level("INFO", logger="temporal_api.access")
    async with service(TEMPORAL_ADDRESS=dev_server.address, **environ) as http:
        await http.head("/api/v1/orders/x")
        await http.request("PROPFIND", "/nowhere?a=1&id_token=ey.J==&&key&Sig=x")
    async with service(TEMPORAL_ADDRESS="127.0.0.1:1", **environ) as http:
        await http.get("/api/v1/workflows/x")
    gone, call, unknown, away = await collector.named(
        "HEAD /api/v1/orders/{order_id}",
        f"{RPC}DescribeWorkflowExecution",
        "HTTP",
        "GET /api/v1/workflows/{workflow_id}",
    )

    assert [0, 2, 2] == [each.status.code for each in (gone, call, away)]
    assert ["NOT_FOUND", "503"] == [values(each.attributes)["error.type"] for each in (call, away)]
    told = values(unknown.attributes)
    assert {
        "http.request.method": "_OTHER",
        "http.request.method_original": "PROPFIND",
        "url.query": "a=1&id_token=REDACTED&&key&Sig=REDACTED",
    }.items() <= told.items()
    traces = [each.__dict__["fields"]["trace_id"] for each in caplog.records if each.name == "temporal_api.access"]
    assert [each.trace_id.hex() for each in (gone, unknown, away)] == traces


@needs_otel
async def test_the_workers_spans(dev_server: DevServer, collector: Collector, task_queue: str) -> None:
    """`temporal-api worker` sends its spans too: an order's trace ends in its activities."""
    settings = {"ORDERS_TASK_QUEUE": task_queue, "TEMPORAL_ADDRESS": dev_server.address}
    otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "OTEL_BSP_SCHEDULE_DELAY": "50", "no_proxy": "127.0.0.1"}
    async with temporal_api("worker", **settings, **otel, OTEL_SERVICE_NAME="orders"), service(**settings) as http:
        await http.post("/api/v1/orders", json=order(), headers={"traceparent": TRACEPARENT})
        run, charged = await collector.named("RunWorkflow:order_processing", "RunActivity:charge_payment")

    assert [bytes.fromhex(TRACE)] * 2 == [run.trace_id, charged.trace_id]
    assert "orders" == collector.resources[0]["service.name"]


@needs_otel
async def test_a_collector_that_does_not_answer(dev_server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds up neither requests nor the end."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        async with service(TEMPORAL_ADDRESS=dev_server.address, OTEL_EXPORTER_OTLP_ENDPOINT=address) as http:
            assert 404 == (await http.get("/api/v1/orders/x")).status_code

    assert SOON.total_seconds() + 1 > time.monotonic() - began


@needs_otel
async def test_a_collector_that_is_away_is_told_once(dev_server: DevServer) -> None:
    """Each attempt of OpenTelemetry would be a line of the log: several in each ten seconds, from every replica."""
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "JWT_SECRET": SECRET, "PORT": str(free_port())}
    otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "no_proxy": "127.0.0.1"}
    otel |= {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "4"}
    async with temporal_api("serve", **environ, **otel) as process, httpx.AsyncClient() as http:
        await process.until("Uvicorn running")
        await http.get(f"http://127.0.0.1:{environ['PORT']}/nowhere")
        await process.until("Failed to export spans batch")

    assert 1 == process.output.count("Transient error")


SEEN = """
import sys
from temporal_api.app import create_app
from temporal_api.settings import from_env
{before}
create_app(from_env({{"JWT_SECRET": "s" * 32, {setting}}}))
print([name for name, module in sys.modules.items() if name.startswith("opentelemetry") and module])
"""


@pytest.mark.parametrize(
    ("before", "setting", "told"),
    [
        ("", "", ""),
        (
            "sys.modules['opentelemetry'] = None",
            "'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:1'",
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but no spans are sent: pip install 'temporal-api[otel]'",
        ),
    ],
    ids=["not set", "not installed"],
)
def test_without_it_nothing_is_imported(before: str, setting: str, told: str) -> None:
    """Not set: nothing of OpenTelemetry is loaded. Set and not installed: one line says so, and the service runs."""
    done = subprocess.run(
        [sys.executable, "-c", SEEN.format(before=before, setting=setting)], capture_output=True, text=True, check=True
    )

    assert ("[]", told) == (done.stdout.strip(), done.stderr.strip())


@needs_otel
def test_a_variable_that_opentelemetry_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops the start with one line."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(SettingsError, match=r"^OTEL_\*: max_queue_size"):
        create_app(from_env({"JWT_SECRET": SECRET, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}))


@pytest.mark.parametrize("address", ["collector:4317", "ftp://collector", "http://user:secret@collector"])
def test_an_address_that_is_none(address: str) -> None:
    """A collector that spans cannot be sent to stops the start; what is in the address is not repeated."""
    with pytest.raises(SettingsError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT: expected an http") as refused:
        from_env({"JWT_SECRET": SECRET, "OTEL_EXPORTER_OTLP_ENDPOINT": address})

    assert address not in str(refused.value)
