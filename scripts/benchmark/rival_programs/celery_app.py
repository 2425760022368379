"""Celery with Redis and a requests.Session, as many services deliver webhooks. Results are off.

celery -A celery_app worker                  works; BROKER names the Redis
python celery_app.py URL COUNT <payload      puts tasks into the queue
"""

from __future__ import annotations

import functools
import os
import sys

import requests
from celery import Celery

app = Celery("benchmark", broker=os.environ["BROKER"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)


@functools.cache
def session() -> requests.Session:
    """One session for each worker process, so that connections are kept."""
    made = requests.Session()
    made.trust_env = False
    return made


def post(url: str, body: str) -> None:
    """Deliver one webhook."""
    headers = {"Content-Type": "application/json"}
    session().post(url, data=body.encode(), headers=headers, timeout=15).raise_for_status()


deliver = app.task(post, name="deliver", bind=False)


def main() -> None:
    """Fill the queue."""
    url, count, body = sys.argv[1], int(sys.argv[2]), sys.stdin.read()
    with app.producer_or_acquire() as producer:
        for _ in range(count):
            deliver.apply_async((url, body), producer=producer)


if __name__ == "__main__":
    main()
