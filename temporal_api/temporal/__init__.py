"""Temporal: the one place that knows gRPC.

client      the connection: calls with a deadline, payloads encoded and decoded
failures    what Temporal's failures mean
payloads    JSON into Temporal and out of it, byte for byte
workers     whether anybody polls a task queue
workflow    a handle: what can be asked of a workflow or done to it
starts      starting one
updates     sending it an update, and finding the outcome
history     its history in pages
events      a history's events as JSON
feeds       its history as it grows
endings     how it ended, or will
polls       long polls that are shared
visibility  which workflows there are
"""
