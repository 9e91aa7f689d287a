# SPDX-License-Identifier: Apache-2.0
"""An endpoint that answers each request over TLS after a fixed time: ``ADDRESS PORT CERTIFICATE SECONDS``."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from contextlib import suppress


def serve(connection: socket.socket, context: ssl.SSLContext, takes_s: float) -> None:
    with connection, suppress(OSError):  # a probe says nothing
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(connection, server_side=True) as secured:
            while secured.recv(4096):
                time.sleep(takes_s)
                secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(2000))


def main(address: str, port: int, certificate: str, takes_s: float) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server((address, port)) as listening:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=serve, args=(connection, context, takes_s), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
