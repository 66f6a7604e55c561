"""A resource of one's own: what follows from its declaration, and which declarations are refused."""

import asyncio
import os
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec
import pytest
from litestar import post
from litestar.params import FromPath, JSONBody
from temporalio import workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.common import SearchAttributeKey
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api import assert_problem, bearer, eventually, service
from temporal_api import app
from temporal_api.app import create_app
from temporal_api.auth import APIRequest
from temporal_api.controllers.orders import OrderController
from temporal_api.dev.server import dev_server as run_dev_server
from temporal_api.errors import Conflict
from temporal_api.idempotency import IdempotencyKey
from temporal_api.openapi import contract as contract_of
from temporal_api.owned import Resource, ResourceController
from temporal_api.problems import responses
from temporal_api.requests import JSONResponse
from temporal_api.services import CurrentServices
from temporal_api.settings import Settings
from temporal_api.temporal.payloads import DATA_CONVERTER

CARDS = "/api/v1/gift-cards"
QUEUE = "gift-cards"
STATUSES = ("issued", "sent", "redeemed", "expired", "cancelled")


class CreateGiftCardRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A gift card as it is asked for."""

    amount: int


class KeptGiftCard(msgspec.Struct):
    """What is kept of it."""

    amount: int


class GiftCardResponse(msgspec.Struct, omit_defaults=True):
    """A gift card."""

    id: str
    amount: int
    status: Literal["issued", "sent", "redeemed", "expired", "cancelled"]
    created_at: datetime
    workflow_id: str
    reason: str | None = None


GIFT_CARDS = Resource(
    "gift_card",
    description="Gift cards.",
    workflow_type="gift_card",
    task_queue=QUEUE,
    kept=KeptGiftCard,
    answer=GiftCardResponse,
    completed="redeemed",
    other_ends=["expired"],
)


class GiftCardController(ResourceController, resource=GIFT_CARDS):
    """Gift cards."""

    @GIFT_CARDS.create("Issue")
    async def create_gift_card(
        self,
        request: APIRequest,
        data: JSONBody[CreateGiftCardRequest],
        services: CurrentServices,
        idempotency_key: IdempotencyKey = None,
    ) -> JSONResponse[GiftCardResponse]:
        """Start its workflow."""
        return await GIFT_CARDS.place(request, services, data, KeptGiftCard(data.amount), idempotency_key)


@workflow.defn(name="gift_card")
class GiftCardRun:
    """Does what its signals say."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @workflow.run
    async def run(self, card: dict[str, Any]) -> int:
        """Take each status that is told; go on as another run, or end."""
        while True:
            await workflow.wait_condition(lambda: bool(self.said))
            match self.said.pop(0):
                case "end":
                    return int(card["amount"])
                case "continue":
                    known = workflow.info().typed_search_attributes
                    workflow.continue_as_new(card, memo=workflow.memo(), search_attributes=known)
                case status:
                    workflow.upsert_memo({"temporal_api.status": {"status": status}})
                    workflow.upsert_search_attributes(
                        [SearchAttributeKey.for_keyword("GiftCardStatus").value_set(status)]
                    )

    @workflow.signal
    def say(self, *words: str) -> None:
        """What to do next."""
        self.said += words

    @workflow.signal
    def cancel(self, why: dict[str, str]) -> None:
        """End as cancelled."""
        self.said += ["cancelled", "end"]


@pytest.fixture(scope="module")
async def shop(anyio_backend: str) -> AsyncIterator[tuple[httpx.AsyncClient, Client]]:
    """Alice, who has gift cards beside orders, at a Temporal server of their own with a worker for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "RESOURCES", [OrderController, GiftCardController])
        async with run_dev_server(
            search_attributes=[*GIFT_CARDS.search_attributes, "OrderOwner", "OrderStatus"]
        ) as server:
            client = await Client.connect(server.address, data_converter=DATA_CONVERTER)
            async with (
                service(TEMPORAL_ADDRESS=server.address) as alice,
                Worker(
                    client,
                    task_queue=QUEUE,
                    workflows=[GiftCardRun],
                    workflow_runner=UnsandboxedWorkflowRunner(),
                ),
            ):
                alice.headers = httpx.Headers(
                    bearer(scope="gift_cards:read gift_cards:write workflows:read workflows:write")
                )
                yield alice, client


async def issue(alice: httpx.AsyncClient) -> str:
    """The id of a new gift card."""
    response = await alice.post(CARDS, json={"amount": 50})
    assert 201 == response.status_code, response.text
    return str(response.json()["id"])


async def reached(alice: httpx.AsyncClient, card: str, status: str, run: str) -> dict[str, Any]:
    """The gift card once it has that status, and its run that one."""

    async def there() -> Any:
        body = (await alice.get(f"{CARDS}/{card}")).json()
        return body if (status, run) == (body["gift_card"]["status"], body["status"]) else None

    return await eventually(there)


async def goes_on(handle: WorkflowHandle[Any, Any], run_id: str) -> bool:
    """Whether another run goes on where that one was."""
    return run_id != (await handle.describe()).run_id


async def events(alice: httpx.AsyncClient, card: str, last: str) -> list[str]:
    """The statuses that the stream tells after that event, up to `done`."""
    async with asyncio.timeout(60):
        text = (await alice.get(f"{CARDS}/{card}/events", headers={"Last-Event-ID": last})).text
    (end,) = re.findall("^id: (.*)\nevent: done", text, re.MULTILINE)
    assert 204 == (await alice.get(f"{CARDS}/{card}/events", headers={"Last-Event-ID": end})).status_code
    return re.findall('"status":"([a-z]+)"', text)


@pytest.mark.anyio
async def test_a_name_of_two_words(shop: tuple[httpx.AsyncClient, Client]) -> None:
    """Path, scopes, codes, ids, health and contract follow from `gift_card`; the sentences are English."""
    alice, _ = shop
    key = {"Idempotency-Key": "birthday"}
    placed = await alice.post(CARDS, json={"amount": 50}, headers=key)
    again = await alice.post(CARDS, json={"amount": 50}, headers=key)
    card = placed.json()
    contract = (await alice.get("/openapi.json")).json()
    operations = {
        f"{method} {path.removeprefix('/api/v1')}": operation
        for path, item in contract["paths"].items()
        for method, operation in item.items()
        if "gift" in path
    }

    assert (201, f"{CARDS}/{card['id']}") == (placed.status_code, placed.headers["location"])
    assert ("true", card) == (again.headers["idempotent-replayed"], again.json())
    assert f"gift_card-{card['id']}" == card["workflow_id"]
    assert card == (await alice.get(f"{CARDS}/{card['id']}")).json()["gift_card"]
    for headers, code, status in (
        (bearer(), "insufficient_scope", 403),
        (bearer("bob", "gift_cards:read"), "gift_card_not_found", 404),
    ):
        assert_problem(await alice.get(f"{CARDS}/{card['id']}", headers=headers), status, code)
    assert "polling" == (await alice.get("/health")).json()["services"]["gift_cards_workers"]
    assert {
        "get /gift-cards": ("listGiftCards", "The caller's gift cards"),
        "post /gift-cards": ("createGiftCard", "Issue a gift card"),
        "get /gift-cards/{gift_card_id}": ("getGiftCard", "A gift card as it is now"),
        "post /gift-cards/{gift_card_id}/cancel": ("cancelGiftCard", "Cancel a gift card"),
        "get /gift-cards/{gift_card_id}/events": ("streamGiftCardEvents", "A gift card's status, live"),
    } == {where: (operation["operationId"], operation["summary"]) for where, operation in operations.items()}
    assert [["gift_cards"]] * 5 == [operation["tags"] for operation in operations.values()]
    scopes = [way["bearer"] for way in operations["post /gift-cards"]["security"]]
    assert [["gift_cards:write"], ["gift_cards:admin"]] == scopes
    assert {"name": "gift_cards", "description": "Gift cards."} in contract["tags"]


@pytest.mark.anyio
async def test_it_is_hidden_from_operators_of_workflows(shop: tuple[httpx.AsyncClient, Client]) -> None:
    """Under /workflows only `gift_cards:admin` sees it, and its ids are reserved."""
    alice, _ = shop
    card = await issue(alice)
    path = f"/api/v1/workflows/gift_card-{card}"
    start = {"workflow_type": "any", "workflow_id": f"gift_card-{uuid.uuid4()}"}
    admin = bearer("ops", "workflows:read gift_cards:admin")

    async def listed(headers: dict[str, str] | None = None) -> set[str]:
        found = await alice.get("/api/v1/workflows", params={"workflow_id_prefix": "gift"}, headers=headers)
        return {item["workflow_id"] for item in found.json()["items"]}

    async def indexed() -> bool:
        return f"gift_card-{card}" in await listed(admin)

    await eventually(indexed)
    assert set() == await listed()
    assert_problem(await alice.get(path), 404, "workflow_not_found")
    assert 200 == (await alice.get(path, headers=admin)).status_code
    assert_problem(await alice.post("/api/v1/workflows", json=start), 409, "reserved_id")


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/api/v1/workflows", "/api/v1/workflow-count"])
async def test_a_raw_query_needs_every_admin_scope(shop: tuple[httpx.AsyncClient, Client], path: str) -> None:
    """It may find the workflows of any resource: 403 names the admin scopes that the token lacks."""
    alice, _ = shop
    query = {"query": "WorkflowType = 'gift_card'"}
    for has, lacks in (
        ("", "orders:admin gift_cards:admin"),
        ("orders:admin", "gift_cards:admin"),
        ("gift_cards:admin", "orders:admin"),
    ):
        response = await alice.get(path, params=query, headers=bearer("ops", f"workflows:admin {has}"))
        assert_problem(response, 403, "insufficient_scope")
        assert f'scope="{lacks}"' in response.headers["www-authenticate"]
    everything = bearer("ops", "workflows:read orders:admin gift_cards:admin")
    assert 200 == (await alice.get(path, params=query, headers=everything)).status_code


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("words", "status", "run"),
    [
        (["sent", "expired", "end"], "expired", "COMPLETED"),
        (["sent", "end"], "redeemed", "COMPLETED"),
        (["sent"], "sent", "RUNNING"),
        (["sent", "continue", "expired", "end"], "expired", "COMPLETED"),
        (["sent", "continue"], "sent", "RUNNING"),
        (["expired", "terminate"], "expired", "TERMINATED"),
        (["sent", "terminate"], "cancelled", "TERMINATED"),
    ],
)
async def test_its_own_statuses(
    shop: tuple[httpx.AsyncClient, Client], words: list[str], status: str, run: str
) -> None:
    """However it ends, a read, every list and the events tell one status; an end is final, continued or not."""
    alice, client = shop
    owner = f"owner-{uuid.uuid4()}"
    async with httpx.AsyncClient(
        base_url=alice.base_url, headers=bearer(owner, "gift_cards:read gift_cards:write"), timeout=60
    ) as http:
        card = await issue(http)
        handle = client.get_workflow_handle(f"gift_card-{card}")
        run_id = (await handle.describe()).run_id
        for word in words:
            if word == "terminate":
                await handle.terminate()
            else:
                await handle.signal("say", word)
            if word in STATUSES:
                await reached(http, card, word, "RUNNING")
            elif word == "continue":
                await eventually(lambda: goes_on(handle, run_id))

        body = await reached(http, card, status, run)

        async def listed(**params: str) -> list[str]:
            items = (await http.get(CARDS, params=params)).json()["items"]
            return [f"{item['id']} {item['status']}" for item in items]

        async def indexed() -> bool:
            return [f"{card} {status}"] == await listed() == await listed(status=status)

        await eventually(indexed)
        for other in {*STATUSES} - {status}:
            assert [] == await listed(status=other), other
        if run != "RUNNING":
            told = await events(http, card, f"{run_id}:1")
            assert (words[0], status, 1) == (told[0], told[-1], told.count(status)), told
            refused = await http.post(f"{CARDS}/{card}/cancel")
            assert f"it is {status}." in assert_problem(refused, 409, "gift_card_not_cancellable")["message"]
        assert 50 == body["gift_card"]["amount"]


@pytest.mark.anyio
async def test_one_end_for_every_outcome(shop: tuple[httpx.AsyncClient, Client]) -> None:
    """A list by the only end finds a run that closed before its workflow wrote it, completed or terminated."""
    alice, client = shop
    ids = []
    for word in ("end", "terminate"):
        handle = client.get_workflow_handle(f"gift_card-{await issue(alice)}")
        await (handle.terminate() if word == "terminate" else handle.signal("say", word))
        ids.append(handle.id)
    query = declared(workflow_type="gift_card", cancelled="redeemed", other_ends=[]).query(None, "redeemed")

    async def found() -> bool:
        return {*ids} <= {run.id async for run in client.list_workflows(query)}

    await eventually(found)


class OutOfStock(Conflict, code="out_of_stock"):
    """There are no cards left. Order new ones."""


@pytest.mark.anyio
async def test_an_error_of_its_own_is_explained(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """`/problems` and the contract know an error that an operation declares."""

    class Sending(ResourceController, resource=GIFT_CARDS):
        create_gift_card = GiftCardController.create_gift_card

        @post(
            "/{gift_card_id:str}/send",
            scope=GIFT_CARDS.admin_scope,
            operation_id="sendGiftCard",
            responses=responses(OutOfStock),
        )
        async def send(self, gift_card_id: FromPath[str]) -> None:
            """Send it."""

    monkeypatch.setattr(app, "RESOURCES", [OrderController, Sending])
    transport = httpx.ASGITransport(create_app(settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        explained = (await http.get("/problems/out_of_stock", headers={"Accept": "application/json"})).json()
        contract = (await http.get("/openapi.json")).json()

    assert ("There are no cards left.", "Order new ones.") == (explained["meaning"], explained["what_to_do"])
    assert "out_of_stock" in contract["components"]["schemas"]["ProblemDetails"]["properties"]["error"]["enum"]


# --- what is refused ---


def declared(**changes: Any) -> Resource[Any, Any]:
    """The declaration of gift cards, with changes."""
    given = {
        "description": "Cards.",
        "workflow_type": "x",
        "kept": KeptGiftCard,
        "answer": GiftCardResponse,
        "completed": "redeemed",
    }
    return Resource(**{"name": "gift_card", **given, **changes})


def struct(base: type[msgspec.Struct], *, without: str = "", **fields: Any) -> type[msgspec.Struct]:
    """A struct as that one, with other fields."""
    kept = {name: kind for name, kind in base.__annotations__.items() if name != without}
    return msgspec.defstruct("Other", list({**kept, **fields}.items()), kw_only=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "GiftCard"}, "cannot be called 'GiftCard'"),
        ({"name": "gift-card"}, "cannot be called 'gift-card'"),
        ({"name": "workflow"}, "cannot be called 'workflow'"),
        ({"name": "job", "plural": "workflows"}, "cannot be called 'workflows'"),
        ({"name": "status"}, "cannot be called 'status'"),
        ({"name": "run_id"}, "cannot be called 'run_id'"),
        ({"completed": "delivered"}, "status has no delivered"),
        ({"cancelled": "undone"}, "status has no undone"),
        ({"other_ends": ["lost"]}, "status has no lost"),
        ({"too_late_to_cancel": ["posted"]}, "status has no posted"),
        ({"completed": "issued"}, "begins with issued, an end status"),
        ({"answer": struct(GiftCardResponse, without="amount")}, "Other.amount: expected"),
        ({"answer": struct(GiftCardResponse, without="reason")}, "Other.reason: expected"),
        ({"answer": struct(GiftCardResponse, without="status")}, "Other.status: expected a Literal"),
        ({"answer": struct(GiftCardResponse, status=str)}, "Other.status: expected a Literal"),
        ({"answer": struct(GiftCardResponse, amount=str)}, "Other.amount: expected"),
        ({"answer": struct(GiftCardResponse, secret=str)}, "Other.secret: expected nothing"),
        ({"kept": struct(KeptGiftCard, owner=str)}, "cannot have owner"),
        ({"kept": struct(KeptGiftCard, created_at=datetime)}, "cannot have created_at"),
        ({"kept": struct(KeptGiftCard, status=str)}, "cannot have status"),
    ],
)
def test_a_declaration_that_does_not_hold_together(changes: dict[str, Any], reason: str) -> None:
    """It is refused when it is read, with what is wrong: never served."""
    with pytest.raises(TypeError, match=re.escape(reason)):
        declared(**changes)


def controller(resource: Resource[Any, Any], *bodies: Any, marked_by: Resource[Any, Any] | None = None) -> Any:
    """A controller with a handler for each of these bodies."""

    def handler(body: Any) -> Any:
        async def place(self: Any, request: APIRequest, data: body) -> JSONResponse[Any]:
            """Place it."""
            raise AssertionError

        return (marked_by or resource).create()(place)

    handlers = {f"create_{n}": handler(body) for n, body in enumerate(bodies)}
    return type(ResourceController)("Cards", (ResourceController,), handlers, resource=resource)


class Open(msgspec.Struct):
    """A body that takes unknown fields."""


class WithId(msgspec.Struct, forbid_unknown_fields=True):
    """A body in which the caller chooses the id."""

    id: str


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: controller(declared()), "needs one handler"),
        (lambda: controller(declared(), CreateGiftCardRequest, CreateGiftCardRequest), "needs one handler"),
        (
            lambda: controller(declared(), CreateGiftCardRequest, marked_by=declared(name="voucher")),
            "needs one handler",
        ),
        (lambda: controller(declared(), Open), "forbid_unknown_fields"),
        (lambda: controller(declared(), dict[str, str]), "forbid_unknown_fields"),
        (lambda: controller(declared(), WithId), "cannot have `id`"),
        (lambda: type(ResourceController)("Cards", (ResourceController,), {}), "resource"),
    ],
)
def test_a_controller_that_lacks_a_part(make: Callable[[], Any], reason: str) -> None:
    """It is refused when it is read: without its resource, or the one handler that takes a strict body."""
    with pytest.raises(TypeError, match=reason):
        make()


@pytest.mark.parametrize("other", [{}, {"name": "card", "plural": "gift_cards"}, {"plural": "cards"}])
def test_two_resources_of_one_name(monkeypatch: pytest.MonkeyPatch, settings: Settings, other: dict[str, str]) -> None:
    """The app refuses to start: the scopes of one would open the other."""
    second = controller(declared(**other), CreateGiftCardRequest)
    monkeypatch.setattr(app, "RESOURCES", [GiftCardController, second])

    with pytest.raises(TypeError, match="two resources are called gift_card"):
        create_app(settings)


class Taken(Conflict, code="gift_card_not_found"):
    """The card is taken."""


@pytest.mark.parametrize(
    ("path", "changes", "reason"),
    [
        ("/{gift_card_id:str}/send", {"scope": None}, "send needs a scope"),
        ("/{card_id:str}/send", {}, "send expects gift_card_id in its path"),
        ("/{gift_card_id:str}/send", {"responses": responses(Taken)}, "code 'gift_card_not_found'"),
    ],
)
def test_an_operation_that_lacks_a_part(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, path: str, changes: dict[str, Any], reason: str
) -> None:
    """The app refuses to start: nobody could call the operation, or an error has another one's code."""

    class Forgetful(ResourceController, resource=GIFT_CARDS):
        create_gift_card = GiftCardController.create_gift_card

        @post(path, operation_id="sendGiftCard", **{"scope": GIFT_CARDS.write_scope, **changes})
        async def send(self, gift_card_id: FromPath[str], data: JSONBody[CreateGiftCardRequest]) -> None:
            """Send it."""

    monkeypatch.setattr(app, "RESOURCES", [OrderController, Forgetful])

    with pytest.raises(TypeError, match=reason):
        create_app(settings)


def test_an_operation_has_the_errors_of_every_one(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """The contract lists them, and those of a body, also for an operation that declares nothing."""

    class Silent(ResourceController, resource=GIFT_CARDS):
        create_gift_card = GiftCardController.create_gift_card

        @post("/send", scope=GIFT_CARDS.write_scope)
        async def send(self, data: JSONBody[CreateGiftCardRequest]) -> None:
            """Send it."""

    monkeypatch.setattr(app, "RESOURCES", [OrderController, Silent])
    paths = contract_of(create_app(settings))["paths"]

    declared, other = (paths[f"/api/v1/{path}"]["post"]["responses"] for path in ("gift-cards/send", "codec/encode"))
    assert set(other) - {"200", "404"} == set(declared) - {"201"}
    assert other["400"] == declared["400"]


def test_a_resource_among_the_controllers(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """The app refuses to start: its workflows would be open to everyone with `workflows:read`."""
    monkeypatch.setattr(app, "CONTROLLERS", [*app.CONTROLLERS, GiftCardController])

    with pytest.raises(TypeError, match="GiftCardController belongs in RESOURCES"):
        create_app(settings)


@pytest.mark.parametrize(
    ("given", "plural", "a_name"),
    [
        ({"name": "refund"}, "refunds", "a refund"),
        ({"name": "invoice"}, "invoices", "an invoice"),
        ({"name": "delivery"}, "deliveries", "a delivery"),
        ({"name": "tax_day"}, "tax_days", "a tax day"),
        ({"name": "box"}, "boxes", "a box"),
        ({"name": "address"}, "addresses", "an address"),
        ({"name": "person", "plural": "people"}, "people", "a person"),
        ({"name": "user", "article": "a"}, "users", "a user"),
    ],
)
def test_english(given: dict[str, str], plural: str, a_name: str) -> None:
    """The usual plural and article are found; others are given."""
    assert (plural, a_name) == (declared(**given).plural, declared(**given).a_name)


CARELESS = """
from temporal_api.controllers.orders import KeptOrder, OrderResponse
from test_owned import GIFT_CARDS, CreateGiftCardRequest, GiftCardResponse, KeptGiftCard
from temporal_api.auth import APIRequest
from temporal_api.owned import Resource, ResourceController
from temporal_api.requests import JSONResponse
from temporal_api.services import CurrentServices

class NoResource(ResourceController):  # call-arg
    pass

Resource("gift_card", description="", workflow_type="", kept=KeptGiftCard, answer=GiftCardResponse)  # call-arg

@GIFT_CARDS.create()  # arg-type
async def other_answer(request: APIRequest, services: CurrentServices) -> JSONResponse[OrderResponse]:
    raise NotImplementedError

@GIFT_CARDS.create()  # arg-type
def not_async(request: APIRequest) -> JSONResponse[GiftCardResponse]:
    raise NotImplementedError

@GIFT_CARDS.create()
async def right(
    request: APIRequest, data: CreateGiftCardRequest, services: CurrentServices
) -> JSONResponse[GiftCardResponse]:
    kept = KeptOrder("cust_1", "1.00")
    await GIFT_CARDS.place(request, services, data, kept, None)  # arg-type
    return await GIFT_CARDS.place(request, services, data, KeptGiftCard("1"), None)  # arg-type
"""


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy comes with the extra `dev`")
def test_what_the_type_checker_finds(tmp_path: Path) -> None:
    """Another resource's kept struct or answer, a part of the declaration that is missing: type errors."""
    (tmp_path / "careless.py").write_text(CARELESS)
    root = Path(__file__).parent
    # In a process of its own: mypy raises Python's recursion limit.
    said = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-pretty", tmp_path / "careless.py"],
        cwd=root.parent,
        env={**os.environ, "MYPYPATH": f"{root}:{root.parent}"},
        capture_output=True,
        text=True,
    ).stdout
    found = re.findall(r"careless.py:(\d+): error:.*\[([a-z-]+)\]$", said, re.MULTILINE)
    lines = enumerate(CARELESS.splitlines(), 1)

    assert [(str(n), line.partition("  # ")[2]) for n, line in lines if "  # " in line] == found, said
