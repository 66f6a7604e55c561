"""Clients that other people's tools make from the contract, at work against a live service.

Each is generated, compiled and run in a folder of its own. A test is skipped, with the reason, where its tools are not
installed or cannot be had from their registry.
"""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from api import service, token
from temporal_api.dev.server import DevServer
from temporal_api.worker.order_processing import create_worker

pytestmark = [pytest.mark.anyio, pytest.mark.full]

PYTHON_TOOL = "openapi-python-client==0.29.1"
NPM_TOOLS = ("openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "@hey-api/openapi-ts@0.95.0", "typescript@5.9.3")
GO_TOOL = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"
OTHER_GO_TOOL = "openapi-generator-cli==7.26.0"
GO_RUNTIME = "github.com/oapi-codegen/runtime v1.9.0"
SECONDS = 120
"""How long one step may take."""

# Each program places an order of 1 x 1234567.89, and prints as JSON what its client made of the answers.
PYTHON = """
import json, sys
from made import AuthenticatedClient
from made.api.orders import create_order, get_order
from made.api.workflows import start_workflow
from made.models import CreateOrderRequest, ProblemDetails, WorkflowExecutionRequest, WorkflowExecutionRequestMemo

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
body = CreateOrderRequest.from_dict(json.loads(sys.argv[3]))
placed = create_order.sync(client=client, body=body)
read = get_order.sync(placed.id, client=client)
missing = get_order.sync("none", client=client)
assert isinstance(missing, ProblemDetails)
memo = WorkflowExecutionRequestMemo.from_dict({"note": [1.5, None]})
start = WorkflowExecutionRequest("made", task_queue="nobody", input_data={"a": None}, memo=memo)
started = start_workflow.sync(client=client, body=start)
print(json.dumps({
    "total": placed.total_amount, "run": read.status, "year": read.order.created_at.year > 2000,
    "error": missing.error, "started": started.status,
}))
"""
FETCH = """
import createClient from "openapi-fetch";
import type { paths } from "./api";

declare const process: { argv: string[] };

async function main() {
  const [baseUrl, token, order] = process.argv.slice(2);
  const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });
  const body: paths["/api/v1/orders"]["post"]["requestBody"]["content"]["application/json"] = JSON.parse(order);
  const placed = await client.POST("/api/v1/orders", { body });
  const order_id = placed.data!.id;
  const read = await client.GET("/api/v1/orders/{order_id}", { params: { path: { order_id } } });
  const missing = await client.GET("/api/v1/orders/{order_id}", { params: { path: { order_id: "none" } } });
  // @ts-expect-error: the type of the problem knows the codes
  const none: boolean = missing.error?.error === "eaten";
  const started = await client.POST("/api/v1/workflows", {
    body: { workflow_type: "made", task_queue: "nobody", input_data: { a: null }, memo: { note: [1.5, null] } },
  });
  console.log(JSON.stringify({
    total: placed.data!.total_amount, run: read.data!.status,
    year: new Date(read.data!.order.created_at).getFullYear() > 2000,
    error: missing.error!.error, started: started.data!.status,
  }));
}
main();
"""
STREAM = """
import { createOrder, streamOrderEvents, type OrderEvent } from "./made";
import { client } from "./made/client.gen";

declare const process: { argv: string[] };

async function main() {
  const [baseUrl, token, order] = process.argv.slice(2);
  client.setConfig({ baseUrl, auth: () => token });
  const placed = await createOrder({ body: JSON.parse(order), throwOnError: true });
  const names: (string | undefined)[] = [], statuses: OrderEvent["status"][] = [];
  let workflow: string | undefined;
  // @ts-expect-error: the type of the events knows the statuses
  const none: OrderEvent["status"] = "eaten";
  const { stream } = await streamOrderEvents({
    path: { order_id: placed.data.id }, onSseEvent: (event) => void names.push(event.event),
  });
  for await (const event of stream) {
    if (event.status) statuses.push(event.status);
    workflow = event.workflow_id;
  }
  const done = names.filter((name) => name === "done").length;
  console.log(JSON.stringify({ statuses, done, same: workflow === placed.data.workflow_id }));
}
main();
"""
GO = """
package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"

	"client/made"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	authorize := func(_ context.Context, request *http.Request) error {
		request.Header.Set("Authorization", "Bearer "+os.Args[2])
		return nil
	}
	client := must(made.NewClientWithResponses(os.Args[1], made.WithRequestEditorFn(authorize)))
	var body made.CreateOrderRequest
	if err := json.Unmarshal([]byte(os.Args[3]), &body); err != nil {
		panic(err)
	}
	if err := body.Items[0].UnitPrice.FromOrderItemUnitPrice1(1234567.89); err != nil { // the number, a float64
		panic(err)
	}
	ctx := context.Background()
	placed := must(client.CreateOrderWithResponse(ctx, nil, body)).JSON201
	read := must(client.GetOrderWithResponse(ctx, placed.Id, nil)).JSON200
	missing := must(client.GetOrderWithResponse(ctx, "none", nil)).ApplicationproblemJSON404
	queue, input := "nobody", any(map[string]any{"a": nil})
	start := made.WorkflowExecutionRequest{WorkflowType: "made", TaskQueue: &queue, InputData: &input}
	started := must(client.StartWorkflowWithResponse(ctx, nil, start)).JSON201
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"total": placed.TotalAmount, "run": read.Status, "year": read.Order.CreatedAt.Year() > 2000,
		"error": missing.Error, "started": started.Status,
	})
}
"""
GO_AGAIN = """
package main

import (
	"context"
	"encoding/json"
	"os"

	"client/made"
)

func main() {
	config := made.NewConfiguration()
	config.Servers = made.ServerConfigurations{{URL: os.Args[1]}}
	config.AddDefaultHeader("Authorization", "Bearer "+os.Args[2])
	var body made.CreateOrderRequest
	if err := json.Unmarshal([]byte(os.Args[3]), &body); err != nil {
		panic(err)
	}
	if err := body.Items[0].UnitPrice.UnmarshalJSON([]byte("1234567.89")); err != nil {
		panic(err)
	}
	orders := made.NewAPIClient(config).OrdersAPI
	placed, _, err := orders.CreateOrder(context.Background()).CreateOrderRequest(body).Execute()
	if err != nil {
		panic(err)
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{"total": placed.TotalAmount})
}
"""
ORDER = json.dumps(
    {
        "customer_id": "cust_123",
        "items": [{"id": "item_1", "quantity": 1, "unit_price": "1234567.89"}],
        "shipping_address": {"city": "Springfield"},
        "payment_method": "card",
        "payment_details": {"card_token": "tok_visa"},
    }
)
UNDERSTOOD = {
    "total": "1234567.89",
    "run": "RUNNING",
    "year": True,
    "error": "order_not_found",
    "started": "RUNNING",
}


async def run(folder: Path, *command: str | Path, **environ: str) -> tuple[int, str]:
    """Run a tool in a folder: its exit code, and what it said. Only this machine is asked without a proxy."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "NO_COLOR": "1", **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    except TimeoutError:
        return 1, f"it took more than {SECONDS} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode()


async def get(folder: Path, *command: str | Path, **environ: str) -> None:
    """Get tools from their registry, or skip the test."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    code, said = await run(folder, *command, **environ)
    if code:
        pytest.skip(f"{' '.join(map(str, command[:2]))} got nothing from its registry: {said.strip()[-300:]}")


async def do(folder: Path, *command: str | Path, **environ: str) -> str:
    """Run a step that has to work; give what it said."""
    code, said = await run(folder, *command, **environ)
    assert code == 0, said[-3000:]
    return said


def last_line(said: str) -> dict[str, Any]:
    """What a program printed last."""
    printed: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return printed


@pytest.fixture
def folder(tmp_path: Path, contract: dict[str, Any]) -> Path:
    """A folder with the contract."""
    (tmp_path / "openapi.json").write_text(json.dumps(contract))
    return tmp_path


@pytest.fixture(scope="module")
async def npm(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> Path:
    """A folder with the tools for TypeScript."""
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text('{"private": true}')
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    await get(folder, "npm", "install", "--no-audit", "--no-fund", *NPM_TOOLS)
    return folder


async def typescript(folder: Path, program: str, *arguments: str) -> dict[str, Any]:
    """Check the types of a program, compile and run it."""
    (folder / "main.ts").write_text(program)
    options = ("--strict", "--target", "es2022", "--lib", "es2022,dom,dom.iterable", "--module", "nodenext")
    await do(folder, "npx", "tsc", *options, "--skipLibCheck", "--outDir", "out", "main.ts")
    return last_line(await do(folder, "node", "out/main.js", *arguments))


async def test_a_python_client(folder: Path, base_url: str) -> None:
    """openapi-python-client."""
    tool = {"PYTHONPATH": str(folder / "tool")}
    await get(folder, sys.executable, "-m", "pip", "install", "--quiet", "--target", "tool", PYTHON_TOOL)
    options = ("generate", "--path", "openapi.json", "--output-path", "made", "--meta", "none")
    said = await do(folder, sys.executable, "-m", "openapi_python_client", *options, **tool)
    assert "unsupported" not in said.lower()
    (folder / "main.py").write_text(PYTHON)

    assert UNDERSTOOD == last_line(await do(folder, sys.executable, "main.py", base_url, token(), ORDER, **tool))


async def test_a_typescript_client(npm: Path, contract: dict[str, Any], base_url: str) -> None:
    """openapi-typescript with openapi-fetch."""
    (npm / "openapi.json").write_text(json.dumps(contract))
    await do(npm, "npx", "openapi-typescript", "openapi.json", "-o", "api.ts")

    assert UNDERSTOOD == await typescript(npm, FETCH, base_url, token(), ORDER)


async def test_a_typed_stream(
    npm: Path, contract: dict[str, Any], dev_server: DevServer, client: Client, task_queue: str
) -> None:
    """@hey-api/openapi-ts follows an order live, until it is done; the types of its events are the contract's."""
    (npm / "openapi.json").write_text(json.dumps(contract))
    await do(npm, "npx", "openapi-ts", "-i", "openapi.json", "-o", "made")
    async with (
        service(TEMPORAL_ADDRESS=dev_server.address, ORDERS_TASK_QUEUE=task_queue) as alice,
        create_worker(client, task_queue),
    ):
        told = await typescript(npm, STREAM, str(alice.base_url).rstrip("/"), token(), ORDER)

    statuses = ["pending", "confirmed", "processing", "shipped", "delivered"]
    assert {"statuses": statuses, "done": 1, "same": True} == told


async def test_a_go_client(folder: Path, base_url: str) -> None:
    """oapi-codegen: a price that is sent as a number keeps its cents."""
    (folder / "made").mkdir()
    (folder / "main.go").write_text(GO)
    (folder / "go.mod").write_text(f"module client\n\ngo 1.24\n\nrequire {GO_RUNTIME}\n")
    await get(folder, "go", "install", GO_TOOL, GOBIN=str(folder / "bin"))
    options = ("-generate", "types,client", "-package", "made", "-o", "made/made.go")
    await do(folder, folder / "bin" / "oapi-codegen", *options, "openapi.json")
    await get(folder, "go", "mod", "tidy")

    assert UNDERSTOOD == last_line(await do(folder, "go", "run", ".", base_url, token(), ORDER))


async def test_another_go_client(folder: Path, base_url: str) -> None:
    """openapi-generator, which takes a number without a format for 32 bits: the price keeps its cents here too."""
    (folder / "main.go").write_text(GO_AGAIN)
    (folder / "go.mod").write_text("module client\n\ngo 1.24\n")
    for program in ("java", "go"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    await get(folder, sys.executable, "-m", "pip", "install", "--quiet", "--target", "tool", OTHER_GO_TOOL)
    tool = ("java", "-jar", "tool/openapi_generator_cli/openapi-generator.jar", "generate", "-g", "go")
    made = ("--additional-properties", "packageName=made,withGoMod=false")
    made += ("--global-property", "models,apis,supportingFiles,apiTests=false,modelTests=false")
    await do(folder, *tool, *made, "-i", "openapi.json", "-o", "made")
    await get(folder, "go", "mod", "tidy")

    assert {"total": "1234567.89"} == last_line(await do(folder, "go", "run", ".", base_url, token(), ORDER))
