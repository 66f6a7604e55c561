"""Java's own HttpClient, which asks for HTTP/2 by `Upgrade: h2c` on every connection."""

import asyncio
import shutil
from pathlib import Path

import pytest

from api import SECRET, token
from commands import temporal_api, until_ready
from temporal_api.dev.server import DevServer, free_port

pytestmark = pytest.mark.anyio

CLIENT = """
import java.net.URI;
import java.net.http.*;
import java.net.http.HttpRequest.BodyPublishers;

public class Orders {
  static final HttpClient CLIENT = HttpClient.newHttpClient();

  static HttpResponse<String> send(String method, String url, String token, String body) throws Exception {
    var publisher = body == null ? BodyPublishers.noBody() : BodyPublishers.ofString(body);
    var request = HttpRequest.newBuilder(URI.create(url)).method(method, publisher)
        .header("Authorization", "Bearer " + token).header("Content-Type", "application/json").build();
    var response = CLIENT.send(request, HttpResponse.BodyHandlers.ofString());
    System.out.println(response.statusCode() + " " + response.body());
    return response;
  }

  public static void main(String[] args) throws Exception {
    var placed = send("POST", args[0] + "/api/v1/orders", args[1], args[2]);
    var order = args[0] + placed.headers().firstValue("location").get();
    send("GET", order, args[1], null);
    send("POST", order + "/cancel", args[1], null);
  }
}
"""
BODY = """{"customer_id": "c", "items": [{"id": "i", "quantity": 1, "unit_price": "1234567.89"}],
"shipping_address": {"city": "Springfield"}, "payment_method": "card", "payment_details": {}}"""


async def test_javas_http_client(dev_server: DevServer, tmp_path: Path) -> None:
    """It places, reads and cancels an order as it comes."""
    if not shutil.which("java"):
        pytest.skip("java is not installed")
    source, port = tmp_path / "Orders.java", free_port()
    source.write_text(CLIENT)
    url = f"http://127.0.0.1:{port}"
    async with temporal_api("serve", JWT_SECRET=SECRET, TEMPORAL_ADDRESS=dev_server.address, PORT=str(port)):
        await until_ready(url)
        arguments = [str(source), url, token(), BODY]
        process = await asyncio.create_subprocess_exec(
            "java", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output = (await process.communicate())[0].decode()

    placed, read, cancelled = output.splitlines()
    assert placed.startswith("201 ")
    assert '"total_amount":"1234567.89"' in placed
    assert read.startswith("200 ")
    assert cancelled.strip() == "204"
