"""A table in which very many rows wait, sent to the end: the first mail, the rate as it goes on, and the memory."""

import subprocess
import sys
import time

from program import at_rest, memory
from smarthost import Sink


def send_waiting(program, database, directory, rows, connections):
    begun = time.perf_counter()
    database.empty()
    database.fill(rows)
    print(f"{database.describe()}: {rows:,} rows were inserted in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    sink = Sink(directory, pipelining=True)
    program.configure(database, sink.port, connections)
    at_rest()
    begun = time.perf_counter()
    process = subprocess.Popen(program.command("once"), stdout=subprocess.DEVNULL)
    try:
        first = None
        peak = 0
        tenths = []
        while process.poll() is None:
            mails, now = sink.mails(), time.perf_counter() - begun
            first = first or (now if mails else None)
            peak = max(peak, memory(process.pid, "VmHWM") or 0)
            if mails >= (len(tenths) + 1) * rows / 10:
                tenths.append(now)
            time.sleep(0.002 if first is None else 0.1)
        taken = time.perf_counter() - begun
    finally:
        process.kill()
        sink.close()
    left = database.left()
    if (process.returncode, sink.mails(), left) != (0, rows, 0):
        raise SystemExit(f"status {process.returncode}, {sink.mails()} of {rows} mails arrived, {left} are left")
    print(f"{rows:,} rows waiting, {database.name}, {connections} connections: first mail after {first * 1000:.0f} ms, "
          f"{rows / taken:,.0f} mails a second, at most {peak / 1024:.0f} MiB")
    spans = [end - start for start, end in zip([0, *tenths], tenths)]
    print("mails a second by tenths: " + ", ".join(f"{rows / 10 / span:,.0f}" for span in spans))
