"""The sample worker, which processes orders. The API itself never imports it."""

from temporal_api.worker.order_processing import TASK_QUEUE, StandIns, create_worker

__all__ = ["TASK_QUEUE", "StandIns", "create_worker"]
