"""The program under measurement: its configuration, and what a run of it takes."""

import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from smarthost import free_port

# smtp-sink names no software, so that "auto" would send nothing behind the final dot.
CONFIGURATION = """
state_dir = "{state}"
[[queue]]
name = "newsletter"
database = "{url}"
table = "mail_queue"
[relay]
host = "127.0.0.1"
port = {port}
tls = "none"
helo = "throughput.example"
connections = {connections}
pipelining = "full"
"""


@dataclass
class Cost:
    seconds: float
    cpu_seconds: float
    peak_mib: float | None
    status: int
    said: str = ""


def at_rest():
    """Waits until the processors have next to nothing to do, for ten seconds at most: a database goes on working for a
    while on what was written or deleted before, and neither side's mails are to pay for that."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        before = processor_times()
        time.sleep(0.25)
        idle, passed = (after - was for after, was in zip(processor_times(), before))
        if idle > 0.97 * passed:
            return


def processor_times():
    """Idle and in all, of all processors, since the machine's start."""
    times = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return times[3] + times[4], sum(times)


def measured(command):
    """Runs a command to its end. What it takes includes the start of its process."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak = threading.Thread(target=watch_peak, args=(process.pid, found := [0]), daemon=True)
    said = []
    reader = threading.Thread(target=lambda: said.append(process.stdout.read()), daemon=True)
    peak.start(), reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    peak.join(), reader.join()
    text = said[0].decode(errors="replace")[-2000:]
    return Cost(seconds, usage.ru_utime + usage.ru_stime, found[0] / 1024, process.returncode, text)


def watch_peak(pid, found):
    """The resource usage of a child begins with its parent's memory: the kernel's mark for the process is its own."""
    while (peak := memory(pid, "VmHWM")) is not None:
        found[0] = max(found[0], peak)
        time.sleep(0.02)


def memory(pid, line):
    """A line of the process's status, in KiB; `None` when it has ended."""
    try:
        for found in Path(f"/proc/{pid}/status").read_text().splitlines():
            if found.startswith(line):
                return int(found.split()[1])
    except OSError:
        pass
    return None


def cpu_seconds(pid):
    """Of all its threads, from the scheduler, which counts nanoseconds."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


class Program:
    def __init__(self, binary, directory):
        self.binary = binary
        self.state = Path(directory) / "state"
        self.file = Path(directory) / "mailqueue.toml"

    def configure(self, database, port, connections=4):
        """With a fresh ledger: otherwise a mail like an earlier one under an earlier number is a restored dump."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.file.write_text(
            CONFIGURATION.format(state=self.state, url=database.url, port=port, connections=connections)
        )

    def command(self, *arguments):
        return [self.binary, "--config", str(self.file), "--log-level", "warn", *arguments]

    def prepare(self, database):
        """Makes all tables."""
        self.configure(database, 25)
        done = subprocess.run(self.command("migrate", "--producers"), capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"migrate: {done.stdout}{done.stderr}")


def milliseconds_to_first_rcpt(program, database):
    """From the start of the process to its first RCPT, one row waiting."""
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        program.configure(database, listener.getsockname()[1], 1)
        begun = time.perf_counter()
        process = subprocess.Popen(program.command("once"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        listener.settimeout(20)
        connection = listener.accept()[0]
        connection.settimeout(20)
        connection.sendall(b"220 first.example ESMTP\r\n")
        seen = b""
        taken = None
        while data := connection.recv(1 << 16):
            seen += data
            if b"RCPT TO" in seen and taken is None:
                taken = (time.perf_counter() - begun) * 1000
                # What follows is not measured.
                process.kill()
                break
            if b"EHLO" in data:
                connection.sendall(b"250-first.example\r\n250 PIPELINING\r\n")
            elif b"MAIL" in data:
                connection.sendall(b"250 ok\r\n")
        process.wait()
    if taken is None:
        raise SystemExit("the program ended without a RCPT")
    return taken


def idle(program, database, seconds):
    """The daemon with an empty table: its memory in MiB, and its CPU seconds in so many seconds."""
    program.configure(database, free_port())
    process = subprocess.Popen(program.command("run"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(3)
        before = cpu_seconds(process.pid)
        time.sleep(seconds)
        return memory(process.pid, "VmRSS") / 1024, cpu_seconds(process.pid) - before
    finally:
        process.terminate()
        process.wait()
