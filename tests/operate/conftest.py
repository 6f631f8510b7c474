"""A whole worker in this process, or a cluster of what lies below it, and servers that may be killed."""

from tests.live.conftest import live_settings, start, worker
from tests.revocation.conftest import cluster, own_database, own_place, own_postgres, own_redis, own_valkey

__all__ = [
    "cluster",
    "live_settings",
    "own_database",
    "own_place",
    "own_postgres",
    "own_redis",
    "own_valkey",
    "start",
    "worker",
]
