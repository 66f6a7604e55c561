"""Sealed payloads: nothing readable reaches Temporal, everything readable comes back."""

import asyncio
import base64
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError

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
    """Up to an event whose key is gone: those before it, then the problem by its code, as the last event."""
    environ = {"TEMPORAL_ADDRESS": dev_server.address, "ORDERS_TASK_QUEUE": task_queue}
    async with (
        service(**environ, PAYLOAD_ENCRYPTION_KEYS=OLD) as old,
        service(**environ, PAYLOAD_ENCRYPTION_KEYS=f"{NEW},{OLD}") as new,
    ):
        start = {"workflow_type": "nobody_runs_this", "task_queue": task_queue, "input_data": 1}
        path = (await old.post("/api/v1/workflows", json=start)).headers["location"]
        await new.post(f"{path}/signal", json={"signal_name": "sealed", "signal_input": 2})
        lines = (await old.get(f"{path}/events")).text.splitlines()
        events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]

    assert ["history", "history", "error"] == events
    assert '"payload_undecodable"' in "".join(lines)


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


async def test_a_start_whose_result_cannot_be_read_is_not_lost(dev_server: DevServer, task_queue: str) -> None:
    """The wait for the result ends in a 502, but the workflow was started: the answer says under which id."""
    body = {"workflow_type": "order_processing", "task_queue": task_queue, "input_data": 1}
    async with (
        shop(dev_server, f"{NEW},{OLD}", task_queue),
        service(TEMPORAL_ADDRESS=dev_server.address, PAYLOAD_ENCRYPTION_KEYS=OLD) as alice,
    ):
        response = await alice.post("/api/v1/workflows", json=body, headers={"Prefer": "wait=20"})
        details = assert_problem(response, 502, "payload_undecodable")["details"]
        path = f"/api/v1/workflows/{details['workflow_id']}"

        assert path == response.headers["location"]
        assert 502 == (await alice.get(f"{path}/result?run_id={details['run_id']}")).status_code  # it is there


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
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-namespace"}
    async with service(**environ) as alice:
        url = f"{alice.base_url}/api/v1/codec/decode"
        async with httpx.AsyncClient() as browser:  # which sends no token with a preflight
            preflight = await browser.options(url, headers={"Origin": ui, **asks})
        headers = bearer(scope=CODEC) | {"Origin": ui, "X-Namespace": "default"}
        decoded = await alice.post(url, json={"payloads": []}, headers=headers)

    assert (204, ui) == (preflight.status_code, preflight.headers["access-control-allow-origin"])
    assert {"authorization", "x-namespace"} <= set(preflight.headers["access-control-allow-headers"].split(", "))
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
