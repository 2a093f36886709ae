"""Postfix's smtp-sink as the smarthost, smtp-source as the measure, and a long link between."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Sink:
    """smtp-sink, which counts the mails that it has taken."""

    def __init__(self, directory, pipelining):
        self.port = free_port()
        self.log = Path(directory) / f"sink-{self.port}.log"
        options = [] if pipelining else ["-p"]
        command = [os.environ["MAILQUEUE_TEST_SINK"], *options, "-c", f"127.0.0.1:{self.port}", "1000"]
        self.process = subprocess.Popen(command, stdout=self.log.open("wb"), stderr=subprocess.DEVNULL)
        wait_for_port(self.port)

    def mails(self):
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 200))
            counts = re.findall(rb"mesg=(\d+)\r", log.read())
        return int(counts[-1]) if counts else 0

    def settled(self, expected):
        """The count, once it stands: a mail too many would come as the last."""
        deadline = time.monotonic() + 5
        while self.mails() < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.mails()

    def close(self):
        self.process.kill()
        self.process.wait()


class Link:
    """A link to `port` with a round trip of so many milliseconds; without any it is `port` itself."""

    def __init__(self, port, round_trip):
        self.process = None
        self.port = port
        if round_trip:
            program = Path(__file__).with_name("delay.py")
            command = [sys.executable, str(program), str(port), str(round_trip / 2)]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self.port = int(self.process.stdout.readline())

    def round_trip(self):
        """What a command and its reply take, in milliseconds."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            replies = connection.makefile("rb")
            replies.readline()
            taken = []
            for _ in range(5):
                begun = time.perf_counter()
                connection.sendall(b"NOOP\r\n")
                replies.readline()
                taken.append(time.perf_counter() - begun)
            connection.sendall(b"QUIT\r\n")
        return sorted(taken)[2] * 1000

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()


def wait_for_port(port):
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.recv(100)
                return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing listens on port {port}")
            time.sleep(0.05)


def source_command(port, connections, mails):
    return [os.environ["MAILQUEUE_TEST_SOURCE"], "-d", "-s", str(connections), "-m", str(mails), "-l", "3000",
            "-f", "newsletter@partei.example.at", "-t", "n@example.org", f"127.0.0.1:{port}"]
