"""What the tests of checks share: a small service with promises, and the command."""

from __future__ import annotations

import textwrap

from tests.slo.support import PLAYBOOKS

SLO = f"""\
apiVersion: rtobs/v1
service: shop
owner: team-shop
tenants: [acme]
playbooks: {PLAYBOOKS}
slos:
  - name: api-ack
    description: Fast.
    objective: 99.9
    playbook: api-latency
    sli: {{kind: latency, hop: accept, threshold: 300ms}}
    where: {{route: [/orders]}}
  - name: delivery
    description: All arrive.
    objective: 99
    playbook: downstream-vendor-outage
    sli: {{kind: deadline, step: promise, threshold: 5s}}
    where: {{channel: [push, email]}}
  - name: handled
    description: Few are given up.
    objective: 99
    playbook: dead-letter-growth
    sli: {{kind: ratio, hop: consume, bad: [dead_lettered]}}
    where: {{destination: [orders]}}
  - name: jobs
    description: In time.
    objective: 99
    playbook: connector-backlog
    sli: {{kind: ratio, hop: job, bad: [missed]}}
    where: {{connector: [crm-sync]}}
"""
READY = """\
import datetime

import rtobs
from rtobs import consume as handles

QUEUE = "orders"


@rtobs.accept("/orders")
async def take(order):
    with rtobs.publish(QUEUE, channel="push", key=order):
        pass


@handles(QUEUE)
async def handle(message):
    rtobs.current().segment(tenant="acme")
    with rtobs.stage("normalize"):
        pass
    await push(message)


@rtobs.deliver("push", "fcm")
async def push(message):
    rtobs.current().event("pushed")


def sync():
    with rtobs.job("crm-sync", due=datetime.datetime.now(datetime.UTC), window=datetime.timedelta(1)) as hop:
        hop.intend("email")
"""


def write(folder, files):
    """Write *files*, source by relative path, with the declaration beside them."""
    for name, text in {"slo.yaml": SLO, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
