"""The Temporal side: the sample worker that makes the main job run end to end. The API itself never imports it."""

from temporal_api.worker.order_processing import TASK_QUEUE, StandIns, create_worker

__all__ = ["TASK_QUEUE", "StandIns", "create_worker"]
