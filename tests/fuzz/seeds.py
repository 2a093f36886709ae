#!/usr/bin/env python3
"""Writes the rows of tests/corpus as seeds for a fuzz target: seeds.py TARGET CORPUS OUT."""
import base64
import glob
import json
import os
import sys

target, corpus, out = sys.argv[1:]
for file in glob.glob(os.path.join(corpus, "*.jsonl")):
    for row in map(json.loads, open(file, encoding="utf-8")):
        try:
            stored = (row[name + "_b64"] for name in ("mto", "msubject", "mheaders", "mparams", "mbody"))
            columns = [base64.b64decode(column or "") for column in stored]
        except ValueError:
            continue
        seed = {"row": b"\xff".join(columns), "list": columns[0], "block": columns[2], "body": columns[-1]}[target]
        if len(seed) <= 20000:
            with open(os.path.join(out, row["id"].replace("/", "_").replace(" ", "_")[:60]), "wb") as seed_file:
                seed_file.write(seed)
