"""Sealed payloads: nothing readable reaches Temporal, everything readable comes back."""

import asyncio
import base64
import dataclasses
import os
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import RawValue
from temporalio.converter import DataConverter, PayloadCodec
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import SECRET, assert_problem, bearer, eventually, order, own_server, service
from temporal_api.dev.build import find_temporal
from temporal_api.dev.server import DevServer
from temporal_api.settings import SettingsError, from_env
from temporal_api.temporal.payloads import data_converter
from temporal_api.worker import StandIns, create_worker
from temporal_api.worker.order_processing import Order

pytestmark = pytest.mark.anyio

OLD = "2025:" + base64.b64encode(b"o" * 32).decode()
NEW = "2026:" + base64.b64encode(b"n" * 32).decode()
CODEC = "codec:decode orders:admin workflows:read"


SECRETS = {
    "payment details": "tok_very_secret",
    "input": "Elm Street 7",
    "memo": "cust_nobodys_business",
    "heartbeat": "Heartbeat Lane",
    "failure's details": "Mallory",
    "failure's message": "lost in the fog",
    "reason": "found it cheaper",
}


class Failing(StandIns):
    """Cannot ship, and says so with words that are nobody's business; looks at the server's files in between."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.written = b""

    def look(self) -> None:
        """What is in the files now: what is over, they may soon forget."""
        self.written += b"".join([file.read_bytes() for file in self.folder.glob("temporal.db*")])

    async def pretend(self, step: str, order: Order) -> None:
        """Fail at the third step, for good the second time."""
        if step == "ship":
            activity.heartbeat({"at": SECRETS["heartbeat"]})
            placed = activity.client().get_workflow_handle(f"order-{order.id}")
            while not (await placed.describe()).raw_description.pending_activities[0].HasField("heartbeat_details"):
                pass  # until Temporal has it
            self.look()
            details = {"driver": SECRETS["failure's details"]}
            raise ApplicationError(SECRETS["failure's message"], details, non_retryable=activity.info().attempt == 2)


@asynccontextmanager
async def shop(
    server: DevServer, keys: str, queue: str, stand_ins: StandIns | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A service and a worker with these keys."""
    environ = {"TEMPORAL_ADDRESS": server.address, "PAYLOAD_ENCRYPTION_KEYS": keys, "ORDERS_TASK_QUEUE": queue}
    settings = from_env({**environ, "JWT_SECRET": SECRET})
    client = await Client.connect(server.address, data_converter=data_converter(settings))
    async with service(**environ) as alice, create_worker(client, queue, stand_ins):
        yield alice


async def ended(alice: httpx.AsyncClient, order_id: str) -> dict[str, Any]:
    """The order once its run is closed."""

    async def closed() -> Any:
        answer = (await alice.get(f"/api/v1/orders/{order_id}")).json()
        return answer if answer["status"] != "RUNNING" else None

    return dict(await eventually(closed))


async def kept_of_orders(folder: Path, keys: str) -> tuple[bytes, str]:
    """What the server's own files hold of an order that fails and one that is cancelled, and what the API tells."""
    body = order(
        customer_id=SECRETS["memo"],
        payment_details={"card_token": SECRETS["payment details"]},
        shipping_address={"street": SECRETS["input"]},
    )
    failing = Failing(folder)
    async with own_server(db_filename=str(folder / "temporal.db")) as server:
        async with shop(server, keys, "sealed", failing) as alice:
            failed = (await alice.post("/api/v1/orders", json=body)).json()["id"]
            told = [str(await ended(alice, failed))]
        async with shop(server, keys, "sealed-too") as alice:
            cancelled = (await alice.post("/api/v1/orders", json=body)).json()["id"]
            await alice.post(f"/api/v1/orders/{cancelled}/cancel", json={"reason": SECRETS["reason"]})
            told.append(str(await ended(alice, cancelled)))
            for order_id in (failed, cancelled):
                path = f"/api/v1/workflows/order-{order_id}/history?page_size=1000"
                told.append((await alice.get(path, headers=bearer(scope=CODEC))).text)
    failing.look()
    return failing.written, "".join(told)


async def test_not_one_byte_is_readable_in_temporal_s_own_database(tmp_path: Path) -> None:
    """With a key, inputs, memos, heartbeats and failures are in no file of the server, yet the API tells them."""
    keys = {"open": "", "sealed": NEW}
    for name in keys:
        (tmp_path / name).mkdir()
    kept = await asyncio.gather(*(kept_of_orders(tmp_path / name, keys[name]) for name in keys))
    for written, told in kept:
        assert b"order_processing" in written
        assert "Traceback" not in told
        assert [] == [what for what, secret in SECRETS.items() if secret not in told and what != "heartbeat"]
    found = [[what for what, secret in SECRETS.items() if secret.encode() in written] for written, _ in kept]

    assert [list(SECRETS), []] == found


async def test_a_failed_query_says_why(dev_server: DevServer, task_queue: str) -> None:
    """Temporal passes on nothing of an encrypted refusal: the answer says so, instead of "Encoded failure"."""
    async with shop(dev_server, NEW, task_queue) as alice:
        placed = (await alice.post("/api/v1/orders", json=order())).json()
        await ended(alice, placed["id"])
        path = f"/api/v1/workflows/{placed['workflow_id']}/query"
        response = await alice.post(path, json={"query_name": "no_such"}, headers=bearer(scope=CODEC))

    problem = assert_problem(response, 422, "query_failed")
    assert "encrypted" in problem["message"]


async def test_keys_rotate_under_running_orders(dev_server: DevServer, task_queue: str) -> None:
    """An order sealed with the old key is read and finished when a new key comes first; without its key it is a 502."""
    old = {"TEMPORAL_ADDRESS": dev_server.address, "PAYLOAD_ENCRYPTION_KEYS": OLD, "ORDERS_TASK_QUEUE": task_queue}
    async with service(**old) as alice:
        placed = (await alice.post("/api/v1/orders", json=order())).json()["id"]
    async with service(**{**old, "PAYLOAD_ENCRYPTION_KEYS": NEW}) as alice:
        problem = assert_problem(await alice.get(f"/api/v1/orders/{placed}"), 502, "payload_undecodable")
        assert "2025" in problem["message"]
        assert 200 == (await alice.get("/api/v1/orders")).status_code  # one that cannot be read hides no other
    async with service(TEMPORAL_ADDRESS=dev_server.address) as alice:
        assert_problem(await alice.get(f"/api/v1/orders/{placed}"), 502, "payload_undecodable")
    async with shop(dev_server, f"{NEW},{OLD}", task_queue) as alice:
        assert "delivered" == (await ended(alice, placed))["order"]["status"]


async def test_a_stream_tells_what_it_can(dev_server: DevServer, task_queue: str) -> None:
    """An event whose key is gone is told with its payload as it is, and so are those after it."""
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "ORDERS_TASK_QUEUE": task_queue}
    async with (
        service(**environ, PAYLOAD_ENCRYPTION_KEYS=OLD) as old,
        service(**environ, PAYLOAD_ENCRYPTION_KEYS=f"{NEW},{OLD}") as new,
    ):
        start = {"workflow_type": "nobody_runs_this", "task_queue": task_queue, "input_data": 1}
        path = (await old.post("/api/v1/workflows", json=start)).headers["location"]
        await new.post(f"{path}/signal", json={"signal_name": "sealed", "signal_input": 2})
        await old.post(f"{path}/terminate", json={"reason": "told"}, headers=bearer(scope="workflows:admin"))
        lines = (await old.get(f"{path}/events")).text.splitlines()
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    told = [msgspec.json.decode(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    assert ["history"] * 4 + ["done"] == events
    assert [1] == told[0]["attributes"]["input"]
    (sealed,) = told[2]["attributes"]["input"]
    assert {"encoding": "binary/encrypted", "encryption-key-id": "2026"} == sealed["metadata"]


async def test_a_sealed_failure_is_told_without_its_key_too(dev_server: DevServer, task_queue: str) -> None:
    """A service with no key for a run's failure still says that it failed: in its result, history and events."""

    class Broken(StandIns):
        async def pretend(self, step: str, order: Order) -> None:
            raise ApplicationError("the crane fell over", non_retryable=True)

    async with shop(dev_server, NEW, task_queue, Broken()) as alice:
        placed = (await alice.post("/api/v1/orders", json=order())).json()
        assert "FAILED" == (await ended(alice, placed["id"]))["status"]
    path = f"/api/v1/workflows/{placed['workflow_id']}"
    async with service(TEMPORAL_ADDRESS=dev_server.address) as alice:
        alice.headers.update(bearer(scope=CODEC))
        result = await alice.get(f"{path}/result")
        others = [await alice.get(path + below) for below in ("/history", "/events")]

    assert ("FAILED", "Encoded failure") == (result.json()["status"], result.json()["failure"]["message"])
    assert [200, 200] == [answer.status_code for answer in others]
    assert "event: done" in others[1].text


async def test_a_start_whose_result_cannot_be_read(dev_server: DevServer, task_queue: str) -> None:
    """The wait ends with the result as it is kept, at the start and at `/result`."""
    body = {"workflow_type": "mixed", "task_queue": task_queue, "args": ["nothing", "give"]}
    settings = from_env({"JWT_SECRET": SECRET, "PAYLOAD_ENCRYPTION_KEYS": f"{NEW},{OLD}"})
    client = await Client.connect(dev_server.address, data_converter=data_converter(settings))
    async with (
        worker(client, task_queue),
        service(TEMPORAL_ADDRESS=dev_server.address, PAYLOAD_ENCRYPTION_KEYS=OLD) as alice,
    ):
        response = await alice.post("/api/v1/workflows", json=body, headers={"Prefer": "wait=20"})
        result = await alice.get(f"{response.headers['location']}/result")

    assert (201, "COMPLETED") == (response.status_code, response.json()["status"])
    assert "2026" == response.json()["result"]["metadata"]["encryption-key-id"]
    assert (200, response.json()["result"]) == (result.status_code, result.json()["result"])


# --- one payload that cannot be opened ---


SEALED = Payload(metadata={"encoding": b"binary/encrypted", "encryption-key-id": b"gone"}, data=b"\x00" * 40)
SHOWN = {
    "metadata": {"encoding": "binary/encrypted", "encryption-key-id": "gone"},
    "data": base64.b64encode(SEALED.data).decode(),
}


@activity.defn
async def beat(sealed: RawValue) -> None:
    """Tell two things, and fail for an hour."""
    activity.heartbeat(sealed, {"page": 7})
    raise ApplicationError("stumbled", sealed, [1], next_retry_delay=timedelta(hours=1))


@workflow.defn(name="mixed")
class Mixed:
    """Has to do with payloads that not everybody can open."""

    @workflow.run
    async def run(self, value: RawValue, how: str) -> RawValue:
        """Give it back, fail with it, or have an activity work on it."""
        if how == "fail":
            raise ApplicationError("broken", value, {"at": 7}, non_retryable=True)
        if how == "work":
            await workflow.execute_activity(beat, value, start_to_close_timeout=timedelta(minutes=1))
        return value


def worker(client: Client, task_queue: str) -> Worker:
    """A worker for it."""
    runner = UnsandboxedWorkflowRunner()
    return Worker(client, task_queue=task_queue, workflows=[Mixed], activities=[beat], workflow_runner=runner)


async def test_a_payload_that_cannot_be_opened_hides_nothing_else(dev_server: DevServer, task_queue: str) -> None:
    """In memo, result, failure, heartbeats and history it is shown as it is; what is beside it is read."""
    client = await Client.connect(dev_server.address)  # its payloads are as they are given
    sealed, ids = RawValue(SEALED), {how: f"mixed-{how}-{uuid.uuid4()}" for how in ("give", "fail", "work")}
    async with (
        worker(client, task_queue),
        service(TEMPORAL_ADDRESS=dev_server.address, PAYLOAD_ENCRYPTION_KEYS=NEW) as alice,
    ):
        for how, workflow_id in ids.items():
            memo = {"bad": sealed, "good": "morning"}
            await client.start_workflow("mixed", args=[sealed, how], id=workflow_id, task_queue=task_queue, memo=memo)

        async def told(how: str) -> dict[str, Any] | None:
            answer = await alice.get(f"/api/v1/workflows/{ids[how]}")
            assert 200 == answer.status_code, answer.text
            status: dict[str, Any] = answer.json()
            assert {"bad": SHOWN, "good": "morning"} == status["memo"]
            waits = [each["next_attempt_time"] for each in status["pending_activities"]]
            return status if (all(waits) if how == "work" and waits else status["status"] != "RUNNING") else None

        given, failed, at_work = [await eventually(lambda how=how: told(how)) for how in ids]  # type: ignore[misc]
        result = (await alice.get(f"/api/v1/workflows/{ids['give']}/result")).json()
        history = (await alice.get(f"/api/v1/workflows/{ids['give']}/history")).json()["items"]
        await client.get_workflow_handle(ids["work"]).terminate()

    assert SHOWN == given["result"] == result["result"]
    assert [SHOWN, "give"] == history[0]["attributes"]["input"]
    assert [SHOWN] == history[-1]["attributes"]["result"]
    assert ("broken", [SHOWN, {"at": 7}]) == (failed["failure"]["message"], failed["failure"]["details"])
    (activity,) = at_work["pending_activities"]
    assert [SHOWN, {"page": 7}] == activity["heartbeat_details"]
    assert ("stumbled", [SHOWN, [1]]) == (activity["last_failure"]["message"], activity["last_failure"]["details"])


# --- Temporal's published samples ---


class SampleCodec(PayloadCodec):
    """As the samples in Python, Go and TypeScript describe it: one key; no additional data; the nonce in front."""

    def __init__(self, keys: str) -> None:
        key_id, key = keys.split(":")
        self.key_id = key_id.encode()
        self.cipher = AESGCM(base64.b64decode(key))

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Seal whatever comes."""
        metadata = {"encoding": b"binary/encrypted", "encryption-key-id": self.key_id}
        nonces = [os.urandom(12) for _ in payloads]
        return [
            Payload(metadata=metadata, data=nonce + self.cipher.encrypt(nonce, payload.SerializeToString(), None))
            for nonce, payload in zip(nonces, payloads, strict=True)
        ]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Open what is sealed; everything must be, and by its own key."""
        for payload in payloads:
            assert {"encoding": b"binary/encrypted", "encryption-key-id": self.key_id} == dict(payload.metadata)
        opened = [self.cipher.decrypt(payload.data[:12], payload.data[12:], None) for payload in payloads]
        return [Payload.FromString(each) for each in opened]


async def test_workers_with_the_codec_of_temporal_s_samples(dev_server: DevServer, task_queue: str) -> None:
    """What the service seals, they open; what they seal, the service opens: inputs, memos, results and failures."""
    converter = dataclasses.replace(DataConverter.default, payload_codec=SampleCodec(NEW))
    client = await Client.connect(dev_server.address, data_converter=converter)
    body = {"workflow_type": "mixed", "task_queue": task_queue, "memo": {"note": "ours"}}
    async with (
        worker(client, task_queue),
        service(TEMPORAL_ADDRESS=dev_server.address, PAYLOAD_ENCRYPTION_KEYS=f"{NEW},{OLD}") as alice,
    ):
        wait = {"Prefer": "wait=20"}
        ours = await alice.post("/api/v1/workflows", json=body | {"args": [{"n": 1.5}, "give"]}, headers=wait)
        handle = client.get_workflow_handle(ours.json()["workflow_id"])
        read = (await handle.result(), (await handle.describe()).memo)
        workflow_id = f"theirs-{uuid.uuid4()}"
        theirs = {"id": workflow_id, "task_queue": task_queue, "memo": {"note": "theirs"}}
        with pytest.raises(WorkflowFailureError):
            await client.execute_workflow("mixed", args=["mine", "fail"], **theirs)  # type: ignore[call-overload]
        status = (await alice.get(f"/api/v1/workflows/{workflow_id}")).json()
        history = (await alice.get(f"/api/v1/workflows/{workflow_id}/history")).json()["items"]

    assert {"n": 1.5} == ours.json()["result"] == read[0]
    assert {"note": "ours"} == await read[1]()
    assert {"note": "theirs"} == status["memo"]
    assert ["mine", {"at": 7}] == status["failure"]["details"]
    assert ["mine", "fail"] == history[0]["attributes"]["input"]


@pytest.mark.parametrize(
    ("cipher", "additional"),
    [
        (b"AES-256-GCM", b"2026"),  # what earlier versions of this service wrote
        (b"AES/GCM/NoPadding", None),  # Temporal's sample in Java
    ],
)
async def test_other_forms_are_read(dev_server: DevServer, cipher: bytes, additional: bytes | None) -> None:
    """With the key's id as additional data, and with a cipher named: both are opened."""
    nonce, plain = os.urandom(12), Payload(metadata={"encoding": b"json/plain"}, data=b'"kept"')
    data = nonce + AESGCM(b"n" * 32).encrypt(nonce, plain.SerializeToString(), additional)
    metadata = {"encoding": b"binary/encrypted", "encryption-cipher": cipher, "encryption-key-id": b"2026"}
    sealed = {"payloads": [{"metadata": metadata, "data": data}]}
    async with service(TEMPORAL_ADDRESS=dev_server.address, PAYLOAD_ENCRYPTION_KEYS=NEW) as alice:
        response = await alice.post(
            "/api/v1/codec/decode",
            content=msgspec.json.encode(sealed),
            headers=bearer(scope=CODEC) | {"Content-Type": "application/json"},
        )

    assert base64.b64encode(b'"kept"').decode() == response.json()["payloads"][0]["data"]


# --- the codec for Temporal's own tools ---


async def test_the_codec_endpoint_serves_temporal_s_cli(dev_server: DevServer, task_queue: str) -> None:
    """`temporal workflow show` reads sealed payloads through it, with a token."""
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "PAYLOAD_ENCRYPTION_KEYS": NEW, "ORDERS_TASK_QUEUE": task_queue}
    body = order(payment_details={"card_token": "tok_for_the_cli"})
    async with service(**environ) as alice:
        workflow_id = (await alice.post("/api/v1/orders", json=body)).json()["workflow_id"]
        show = [str(await find_temporal()), "workflow", "show", "-w", workflow_id, "--output", "json"]
        show += ["--address", dev_server.address, "--codec-endpoint", f"{alice.base_url}/api/v1/codec"]
        show += ["--codec-auth", bearer(scope=CODEC)["Authorization"]]
        process = await asyncio.create_subprocess_exec(*show, stdout=asyncio.subprocess.PIPE)
        shown = (await process.communicate())[0].decode()

    assert b"tok_for_the_cli" in b"".join(base64.b64decode(data) for data in re.findall(r'"data": "(.*?)"', shown))


async def test_the_codec_endpoint_answers_temporal_s_ui(dev_server: DevServer) -> None:
    """A page of the UI may ask from its own origin, with its token and its headers: preflight and answer allow it."""
    ui = "http://127.0.0.1:8233"
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "PAYLOAD_ENCRYPTION_KEYS": NEW, "ALLOWED_ORIGINS": ui}
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,authorization-extras,content-type,x-namespace",
    }
    async with service(**environ) as alice:
        url = f"{alice.base_url}/api/v1/codec/decode"
        async with httpx.AsyncClient() as browser:  # which sends no token with a preflight
            preflight = await browser.options(url, headers={"Origin": ui, **asks})
        headers = bearer(scope=CODEC) | {"Origin": ui, "X-Namespace": "default"}
        decoded = await alice.post(url, json={"payloads": []}, headers=headers)

    assert (204, ui) == (preflight.status_code, preflight.headers["access-control-allow-origin"])
    assert {"authorization", "authorization-extras", "x-namespace"} <= set(
        preflight.headers["access-control-allow-headers"].split(", ")
    )
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert (200, ui) == (decoded.status_code, decoded.headers["access-control-allow-origin"])


async def test_the_codec_gives_back_what_it_was_given(dev_server: DevServer) -> None:
    """encode, then decode: the same payloads in the same order; what was never sealed passes."""
    given = {
        "payloads": [
            {
                "metadata": {"encoding": base64.b64encode(b"json/plain").decode()},
                "data": base64.b64encode(data).decode(),
            }
            for data in (b"1.10", b'"\xc3\xa9"', b"")
        ]
    }
    async with service(TEMPORAL_ADDRESS=dev_server.address, PAYLOAD_ENCRYPTION_KEYS=NEW) as alice:
        admin = bearer(scope=CODEC)
        sealed = (await alice.post("/api/v1/codec/encode", json=given, headers=admin)).json()
        opened = (await alice.post("/api/v1/codec/decode", json=sealed, headers=admin)).json()
        plain = (await alice.post("/api/v1/codec/decode", json=given, headers=admin)).json()
        tampered = msgspec.json.decode(msgspec.json.encode(sealed))
        tampered["payloads"][0]["data"] = base64.b64encode(os.urandom(60)).decode()

        assert_problem(await alice.post("/api/v1/codec/decode", json=sealed), 403, "insufficient_scope")
        response = await alice.post("/api/v1/codec/decode", json=tampered, headers=admin)
        assert_problem(response, 502, "payload_undecodable")
    assert given == opened == plain
    assert given != sealed
    async with service(TEMPORAL_ADDRESS=dev_server.address) as alice:
        response = await alice.post("/api/v1/codec/decode", json=sealed, headers=bearer(scope=CODEC))
        assert_problem(response, 404, "not_found")


@pytest.mark.parametrize("keys", ["x", "id:short", f"{NEW},{NEW[:-4]}", f":{NEW[5:]}", f"{NEW},{NEW}"])
def test_unfit_keys_stop_the_start(keys: str) -> None:
    """Each key has an id of its own and 32 bytes; the error never shows one."""
    with pytest.raises(SettingsError, match=r"^PAYLOAD_ENCRYPTION_KEYS: ") as refused:
        from_env({"JWT_SECRET": SECRET, "PAYLOAD_ENCRYPTION_KEYS": keys})

    assert NEW[5:20] not in str(refused.value)
