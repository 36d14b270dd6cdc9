"""Flask-SocketIO with Redis as its message queue, in threads or with gevent."""

from __future__ import annotations

import os
import time

from flask import Flask
from flask_socketio import SocketIO, emit, join_room

app = Flask(__name__)
socketio = SocketIO(
    app,
    async_mode=os.environ["BENCH_ASYNC_MODE"],
    message_queue=os.environ["BENCH_REDIS"],
    cors_allowed_origins="*",
)


@socketio.on("subscribe")
def subscribe(room: str) -> None:
    join_room(room)
    emit("subscribed")


@app.post("/publish/<word>")
def publish(word: str) -> str:
    data = {"t": time.monotonic(), "word": word, "x": "x" * 100}
    socketio.emit("message", data, to="posts/7")
    return "ok"


@app.get("/up")
def up() -> str:
    return "up"
