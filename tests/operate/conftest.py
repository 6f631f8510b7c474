"""A whole worker in this process, and the alarms that it raises."""

from tests.live.conftest import live_settings, start, worker

__all__ = ["live_settings", "start", "worker"]
