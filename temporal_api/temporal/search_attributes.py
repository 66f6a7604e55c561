"""The search attributes of a namespace."""

from collections.abc import Iterable

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client


async def add_search_attributes(client: Client, names: Iterable[str]) -> list[str]:
    """Add the keyword search attributes of these names to the client's namespace; return those that were missing."""
    request = ListSearchAttributesRequest(namespace=client.namespace)
    known = (await client.operator_service.list_search_attributes(request)).custom_attributes
    missing = [name for name in names if name not in known]
    if missing:
        keywords = dict.fromkeys(missing, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
        add = AddSearchAttributesRequest(namespace=client.namespace, search_attributes=keywords)
        await client.operator_service.add_search_attributes(add)
    return missing
