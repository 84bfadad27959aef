"""An application of confluent-kafka's: one record goes round, through classes that are of C."""

import sys

from confluent_kafka import Consumer, Producer

address, name = sys.argv[1:]
producer = Producer({"bootstrap.servers": address})
producer.produce(name, b"order")
assert producer.flush(20) == 0
consumer = Consumer({"bootstrap.servers": address, "group.id": name, "auto.offset.reset": "earliest"})
consumer.subscribe([name])
record = None
for _ in range(40):
    record = consumer.poll(0.5)
    if record is not None and record.error() is None:
        break
assert record is not None
assert record.value() == b"order"
consumer.commit(record, asynchronous=False)
consumer.close()
print("done")
