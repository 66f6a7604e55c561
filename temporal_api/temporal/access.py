"""Connecting to Temporal: why it fails, in one line; new certificates and keys; a namespace's search attributes."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, TLSConfig

from temporal_api.settings import Settings, SettingsError

REREAD_SECONDS = 5.0
RETRY_SECONDS = 2.0
CONNECT_SECONDS = 10.0

_CAUSES = {
    "dns error": "TEMPORAL_ADDRESS: the name of {at} is not known",
    "ConnectionRefused": "TEMPORAL_ADDRESS: nothing listens at {at}",
    "Unreachable": "TEMPORAL_ADDRESS: there is no way to {at}",
    "TimedOut|TimeoutExpired": "TEMPORAL_ADDRESS: no answer in time from {at}",
    "NotValidForName": "TEMPORAL_TLS_SERVER_NAME: the server's certificate is for another name",
    r"InvalidCertificate\((Expired|NotValidYet)": "TEMPORAL_ADDRESS: the server's certificate is not valid now",
    "InvalidCertificate": "TEMPORAL_TLS_SERVER_CA_CERT_PATH: the server's certificate is by another authority",
    "InvalidMessage|handshake eof": "TEMPORAL_TLS: the server does not speak TLS",
    # From a web server, or from a proxy that cannot reach Temporal.
    r"mapped from HTTP status code|response with status": "TEMPORAL_ADDRESS: what answers at {at} is not Temporal",
    # TLS 1.3: a server that refuses the client's certificate closes the connection only after the handshake.
    "AlertReceived|ConnectionReset|transport error|h2 protocol error|operation was canceled|tcp connect error": (
        "TEMPORAL_ADDRESS: the server closes the connection; if it always does, TEMPORAL_TLS or the client's "
        "certificate is wrong"
    ),
}
"""The SDK's messages, in the debug format of its core, and what they mean."""
_STATUS = re.compile(r'Status { code: (\w+), message: "(.*?)(?<!\\)"')
_REFUSALS = {
    "NotFound": "TEMPORAL_NAMESPACE",
    "InvalidArgument": "TEMPORAL_NAMESPACE",
    "PermissionDenied": "TEMPORAL_NAMESPACE, TEMPORAL_API_KEY: permission denied",
    "Unauthenticated": "TEMPORAL_API_KEY: not accepted",
}

log = logging.getLogger(__name__)


class AccessError(RuntimeError):
    """Temporal cannot be reached. The message is one line that names the setting to look at."""


class AccessDeniedError(AccessError):
    """Temporal refuses the namespace or the caller. Waiting does not help."""


def cause(error: Exception, at: str = "this address") -> AccessError:
    """Say in one line why there is no connection, from the SDK's error."""
    said = text = str(error) or "TimedOut"  # asyncio's TimeoutError has no message
    code = error.status.name.title().replace("_", "") if isinstance(error, RPCError) else ""
    if found := _STATUS.search(text):
        code, text = found[1], found[2]
    text = " ".join(text.split())[:300]
    if code in _REFUSALS and (_REFUSALS[code] != "TEMPORAL_NAMESPACE" or "amespace" in text):
        return AccessDeniedError(f"{_REFUSALS[code]}: {text}")
    told = next((told for pattern, told in _CAUSES.items() if re.search(pattern, said)), None)
    if told is None:
        thing = "TEMPORAL_ADDRESS" if code in ("", "Unknown", "Unavailable") else "Temporal"
        told = f"{thing}: {text if code and '::' not in text else 'no connection to {at} can be made'}"
    return AccessError(told.replace("{at}", at))


async def connect(config: Mapping[str, Any], **options: Any) -> Client:
    """Connect, and check the namespace. Raises AccessError."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            client = await Client.connect(**config, **options)
            request = DescribeNamespaceRequest(namespace=client.namespace)
            await client.workflow_service.describe_namespace(request)
            return client
    except (TimeoutError, RPCError, RuntimeError, ValueError) as error:
        raise cause(error, config["target_host"]) from None


async def wait_for_temporal(settings: Settings, **options: Any) -> Client:
    """Connect as soon as Temporal answers; log once that it does not. Raises AccessDeniedError."""
    told = ""
    while True:
        try:
            return await connect(settings.read_temporal(), **options)
        except AccessDeniedError:
            raise
        except (AccessError, SettingsError) as error:
            if told != (told := str(error)):
                log.warning("Temporal cannot be reached, waiting for it: %s", told)
        await asyncio.sleep(RETRY_SECONDS)


async def renewals(settings: Settings, **options: Any) -> AsyncIterator[tuple[dict[str, Any], Client]]:
    """Yield new connection arguments and a connected client when files have changed and work."""
    used, told = settings.temporal, ""
    while True:
        await asyncio.sleep(REREAD_SECONDS)
        problem = ""
        try:
            found = await asyncio.to_thread(settings.read_temporal)
            # Only a restart moves the service to another server or namespace.
            found |= {name: used[name] for name in ("target_host", "namespace")}
            if found != used:
                if lost := _given(used) - _given(found):
                    raise AccessError(f"TEMPORAL_CONFIG_FILE: has no {', '.join(sorted(lost))} any longer")
                client = await connect(found, **options)
                log.info("Temporal's certificates or API key have changed: connecting anew")
                yield found, client
                used = found
        except (AccessError, SettingsError) as error:
            problem = str(error)
        if problem not in ("", told):
            log.warning("Temporal's certificates and API key stay as they were: %s", problem)
        told = problem


def _given(config: Mapping[str, Any]) -> set[str]:
    tls = config.get("tls")
    return {name for name, value in {**config, **(vars(tls) if isinstance(tls, TLSConfig) else {})}.items() if value}


async def add_search_attributes(client: Client, names: Iterable[str]) -> list[str]:
    """Add the keyword search attributes of these names to the client's namespace; return those that were missing.

    Raises AccessError if one has another type.
    """
    request = ListSearchAttributesRequest(namespace=client.namespace)
    known = (await client.operator_service.list_search_attributes(request)).custom_attributes
    keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    missing = [name for name in names if name not in known]
    if wrong := [name for name in names if known.get(name, keyword) != keyword]:
        raise AccessError(f"search attribute {wrong[0]}: has another type, expected Keyword; remove it first")
    if missing:
        keywords = dict.fromkeys(missing, keyword)
        add = AddSearchAttributesRequest(namespace=client.namespace, search_attributes=keywords)
        await client.operator_service.add_search_attributes(add)
    return missing
