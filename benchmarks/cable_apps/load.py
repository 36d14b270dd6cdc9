"""Requests from a process of its own: a steady publisher, or threads that saturate a server."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time


def publish(port: int, rate: float, seconds: float) -> None:
    """POST to /publish/... at a steady rate over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    start = time.monotonic()
    for number in range(int(rate * seconds)):
        time.sleep(max(0.0, start + number / rate - time.monotonic()))
        _request(connection, "POST", f"/publish/w{number}")


def saturate(port: int, threads: int) -> None:
    """GET /work on as many connections; print how long each took at a line "report" of stdin."""
    times: list[float] = []
    for _ in range(threads):
        threading.Thread(target=_saturate, args=(port, times), daemon=True).start()
    for line in sys.stdin:
        if line.strip() == "report":
            print(json.dumps(times), flush=True)
        times.clear()


def _saturate(port: int, times: list[float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while True:
        start = time.monotonic()
        _request(connection, "GET", "/work")
        times.append(time.monotonic() - start)


def _request(connection: http.client.HTTPConnection, method: str, path: str) -> None:
    connection.request(method, path)
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status}")


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        publish(int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
    else:
        saturate(int(sys.argv[2]), int(sys.argv[3]))
