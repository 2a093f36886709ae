#!/usr/bin/env python3
"""A TCP proxy that delays: delay.py PORT MILLISECONDS listens on a loopback port that it prints, and hands on what comes
to PORT, each direction so many milliseconds later. As on a long link, there is no limit on what is under way.

Two threads a direction, because a thread sleeps to within 0.1 ms, and an event loop only to a whole one.
"""

import queue
import socket
import sys
import threading
import time


def start(target, *arguments):
    threading.Thread(target=target, args=arguments, daemon=True).start()


def read(source, wire, delay):
    while True:
        try:
            data = source.recv(1 << 16)
        except OSError:
            data = b""
        wire.put((time.monotonic() + delay, data))
        if not data:
            return


def write(wire, sink):
    while True:
        due, data = wire.get()
        time.sleep(max(0, due - time.monotonic()))
        try:
            if not data:
                return sink.shutdown(socket.SHUT_WR)
            sink.sendall(data)
        except OSError:
            return


def link(client, port, delay):
    server = socket.create_connection(("127.0.0.1", port))
    for source, sink in ((client, server), (server, client)):
        sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = queue.SimpleQueue()
        start(read, source, wire, delay)
        start(write, wire, sink)


def main():
    port, delay = int(sys.argv[1]), float(sys.argv[2]) / 1000
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listener.getsockname()[1], flush=True)
    while True:
        link(listener.accept()[0], port, delay)


main()
