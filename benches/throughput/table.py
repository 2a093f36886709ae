"""Prints what was measured, a line as soon as it is known."""

import statistics

HEADS = ("database", "connections", "round trip", "PIPELINING", "mails", "mailqueue", "smtp-source", "ratio",
         "lowest and highest", "memory", "CPU s/1,000")
BARS = {"start": 50, "memory": 15}


class Table:
    def __init__(self, markdown):
        self.markdown = markdown

    def machine(self, programs, machine):
        print(f"{machine}; {'; '.join(programs)}; Postfix's smtp-sink on loopback, mails of 3 kB\n", flush=True)

    def rates(self, cells):
        """Rates are mails a second; memory and CPU are mailqueue's."""
        self.line(HEADS)
        if self.markdown:
            self.line(["---"] * 4 + ["---:"] * (len(HEADS) - 4))
        for cell, mails, round_trip, pairs in cells:
            ours, theirs = ([mails / cost.seconds for cost in costs] for costs in zip(*pairs))
            mine = [cost for cost, _ in pairs]
            self.line((
                cell.database,
                cell.connections,
                f"{round_trip:.1f} ms",
                "full" if cell.pipelining else "off",
                f"{mails:,}",
                f"{statistics.median(ours):,.0f}",
                f"{statistics.median(theirs):,.0f}",
                f"{statistics.median(ours) / statistics.median(theirs):.2f}",
                f"{min(ours):,.0f}–{max(ours):,.0f}",
                f"{max(cost.peak_mib for cost in mine):.0f} MiB",
                f"{statistics.median(cost.cpu_seconds for cost in mine) / mails * 1000:.3f}",
            ))
        print(flush=True)

    def start(self, taken):
        each = ", ".join(f"{name} {milliseconds:.0f} ms" for name, milliseconds in taken.items())
        print(f"From the start of the process to the first RCPT (bar: {BARS['start']} ms): {each}", flush=True)

    def idle(self, taken, seconds):
        each = ", ".join(f"{name} {mib:.1f} MiB and {cpu * 1000:.0f} ms" for name, (mib, cpu) in taken.items())
        print(f"Idle daemon, memory (bar: {BARS['memory']} MiB) and CPU in {seconds} s: {each}", flush=True)

    def line(self, values):
        values = [str(value) for value in values]
        if self.markdown:
            print(f"| {' | '.join(values)} |", flush=True)
        else:
            widths = (10, 11, 10, 10, 7, 10, 11, 5, 19, 8, 11)
            print("  ".join(v.ljust(w) if i < 4 else v.rjust(w) for i, (v, w) in enumerate(zip(values, widths))),
                  flush=True)
