"""Temporal: the one place that knows gRPC.

client             calls with a deadline, payloads encoded and decoded
connections        what carries the calls
failures           what Temporal's failures mean
payloads           JSON into Temporal and out of it, byte for byte
workers            whether a task queue has workers
workflow           a handle of a workflow: what can be asked of it or done to it
run                the state of one of its runs
starts             start a workflow
updates            send it an update, and find the outcome
history            its history, page by page
events             the events of a history as JSON
feeds              its history as it grows
endings            how it ended, or will end
polls              long polls that are shared
visibility         which workflows there are
search_attributes  which search attributes the namespace has
"""
