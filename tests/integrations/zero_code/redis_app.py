"""An application of redis-py's: one entry goes through a stream."""

import sys

import redis

url, name = sys.argv[1:]
client = redis.Redis.from_url(url)
client.xgroup_create(name, "workers", id="0", mkstream=True)
client.xadd(name, {"order": "1"})
for _stream, entries in client.xreadgroup("workers", "one", {name: ">"}, count=1, block=5000):
    for identity, _fields in entries:
        client.xack(name, "workers", identity)
client.delete(name)
print("done")
