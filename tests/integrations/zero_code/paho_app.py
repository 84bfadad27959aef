"""An application of paho's: one message goes round."""

import sys
import threading
from urllib.parse import urlsplit

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

url, name = sys.argv[1:]
ready, done = threading.Event(), threading.Event()
client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
client.on_connect = lambda *_: client.subscribe(name, qos=1)
client.on_subscribe = lambda *_: ready.set()
client.on_message = lambda *_: done.set()
client.connect(urlsplit(url).hostname or "", urlsplit(url).port or 1883)
client.loop_start()
assert ready.wait(20)
client.publish(name, b"order", qos=1).wait_for_publish(20)
assert done.wait(20)
client.disconnect()
client.loop_stop()
print("done")
