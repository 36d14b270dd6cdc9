"""The yardstick of a broadcast: accept sockets, and send the same bytes to all in a bare loop."""

from __future__ import annotations

import socket
import sys


def main() -> None:
    """Answer each connection with a 101 and a "subscribed"; then send each line of stdin to all."""
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
    clients = []
    for _ in range(int(sys.argv[2])):
        client, _ = listener.accept()
        client.recv(65536)
        client.sendall(b'HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x0c"subscribed"')
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setblocking(False)
        clients.append(client)
    print("ready", flush=True)
    for line in sys.stdin:
        payload = line.strip().encode()
        frame = bytes([0x81, 126]) + len(payload).to_bytes(2, "big") + payload
        for client in clients:
            client.send(frame)


if __name__ == "__main__":
    main()
