"""flask-sock with Redis pub/sub as its users do it: a thread and a subscription a socket."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from flask import Flask
from flask_sock import Sock

URL = os.environ["BENCH_REDIS"]
app = Flask(__name__)
sock = Sock(app)
client = redis.Redis.from_url(URL)


@sock.route("/cable")
def cable(ws: Any) -> None:
    with redis.Redis.from_url(URL).pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe("posts/7")
        ws.send('{"type": "subscribed"}')
        for message in subscription.listen():
            ws.send(message["data"].decode())


@app.post("/publish/<word>")
def publish(word: str) -> str:
    client.publish("posts/7", json.dumps({"t": time.monotonic(), "word": word, "x": "x" * 100}))
    return "ok"


@app.get("/up")
def up() -> str:
    return "up"
