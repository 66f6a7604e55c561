"""Temporal: the one place that knows gRPC.

payloads   JSON into Temporal and out of it, byte for byte
failures   what Temporal's failures mean in HTTP
client     the connection, and the calls that handlers make
"""

from temporal_api.temporal.client import (
    COMPLETED,
    STATUS,
    TEMPORAL,
    Started,
    Temporal,
    TemporalClient,
    connect,
    is_open,
    seconds_between,
)
from temporal_api.temporal.failures import FailureInfo
from temporal_api.temporal.payloads import DATA_CONVERTER, data_converter, raw_json

__all__ = [
    "COMPLETED",
    "DATA_CONVERTER",
    "STATUS",
    "TEMPORAL",
    "FailureInfo",
    "Started",
    "Temporal",
    "TemporalClient",
    "connect",
    "data_converter",
    "is_open",
    "raw_json",
    "seconds_between",
]
