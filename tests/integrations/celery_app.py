"""A Celery application as a service has it, for workers that are processes of their own.

The environment says which broker and queue: ``CELERY_TEST_BROKER``, ``CELERY_TEST_QUEUE``.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery import Celery

import rtobs

app = Celery("shop", broker=os.environ["CELERY_TEST_BROKER"], backend="cache+memory://")
app.conf.task_default_queue = os.environ["CELERY_TEST_QUEUE"]
app.conf.worker_hijack_root_logger = False
app.conf.task_ignore_result = True
rtobs.wrap(app)
rtobs.configure(service="worker")


@app.task(name="count")
def count(number: int) -> int:
    return number


@app.task(name="die", bind=True, acks_late=True)
def die(self: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="die.again", bind=True, acks_late=True, reject_on_worker_lost=True)
def die_again(self: Any) -> None:
    if not self.request.delivery_info["redelivered"]:
        os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="hang", time_limit=1)
def hang() -> None:
    time.sleep(30)
