#!/usr/bin/env python3
"""Reads mails with Python's email package and compares them with what the rows of this directory expect.

    compare.py SENT.jsonl [ROWS.jsonl ...]

SENT has an object a line: {"id", "mail_from", "rcpt_to", "wire_b64"}. Prints each difference and ends with 1 if there is one.

The reader is strict (email.policy.default) for all that stands in headers, so that what it finds is what a standards-abiding
program finds. `expect` of a row says:

    outcome                    send, or reject: no mail may be there; with `either` both are fine
    envelope_from, rcpt_to     as SMTP is told; rcpt_forbidden: never among them
    from, to, cc, reply_to     [[name, address], ...]
    subject                    decoded, on one line
    text_parts                 texts that are no attachments, line ends as LF, without white space at their ends
    attachments                [[file name, SHA-256 of the content], ...]
    extra_headers              names and decoded values that must be there
    accept                     {field: [value, ...]}: further values that are fine
"""
import base64
import email
import email.policy
import glob
import hashlib
import json
import os
import re
import sys

ONCE = "from to cc subject date message-id mime-version content-type sender reply-to".split()
ENCODED_WORD = re.compile(rb"=\?([^?\s]+)\?([bBqQ])\?([^?\s]*)\?=")


def one_line(text):
    return re.sub(r"[\x00-\x20\x7f]+", " ", text).strip(" ")


def squeezed(text):
    """The package puts blanks between encoded words that are neighbours: names are compared without any."""
    return re.sub(r"\s", "", text)


def lower_domain(address):
    local, _, domain = address.rpartition("@")
    if not domain.isascii():
        domain = domain.encode("idna").decode()
    return local + "@" + domain.lower()


def mailboxes(message, name):
    header = message[name]
    return [[a.display_name, lower_domain(a.addr_spec)] for a in header.addresses] if header else []


def text_of(part, data):
    charset = part.get_content_charset() or "utf-8"
    if charset in ("us-ascii", "ascii"):
        charset = "utf-8"
    return re.sub(r"\r\n|\r|\n", "\n", data.decode(charset, "replace")).rstrip()


def leaves(message):
    texts, files = [], []
    for part in message.walk():
        if part.is_multipart():
            continue
        data = part.get_payload(decode=True) or b""
        name = part.get_filename()
        if part.get_content_maintype() == "text" and not name and part.get_content_disposition() != "attachment":
            texts.append(text_of(part, data))
        else:
            name = str(email.header.make_header(email.header.decode_header(name or "")))
            files.append([name, hashlib.sha256(data).hexdigest()])
    return texts, files


def wire_faults(wire):
    head = wire.partition(b"\r\n\r\n")[0] + b"\r\n"
    if re.search(rb"(?<!\r)\n|\r(?!\n)", wire):
        yield "bare CR or LF"
    if b"\0" in wire:
        yield "NUL"
    if not wire.endswith(b"\r\n"):
        yield "last line has no end"
    if any(len(line) > 998 for line in wire.split(b"\r\n")):
        yield "line over 998 bytes"
    if not head.isascii():
        yield "8-bit header"
    names = [m[1].decode().lower() for m in re.finditer(rb"(?m)^([!-9;-~]+):", head)]
    for name in ONCE:
        if names.count(name) > 1:
            yield "two headers " + name
    for name in ("bcc", "return-path", "resent-bcc"):
        if name in names:
            yield "header " + name
    for name in ("from", "date", "message-id", "mime-version", "content-type"):
        if name not in names:
            yield "no header " + name
    for line in head.split(b"\r\n"):
        if ENCODED_WORD.search(line) and len(line) > 76:
            yield "encoded word in a line of %d" % len(line)
    unfolded = re.sub(rb"\r\n(?=[ \t])", b"", head)
    if re.search(rb'"[^"\r\n]*=\?[^"?]+\?[bBqQ]\?[^"]*"', unfolded):
        yield "encoded word in quotes"
    for word in ENCODED_WORD.finditer(head):
        if len(word[0]) > 75:
            yield "encoded word of %d" % len(word[0])
        try:
            base64.b64decode(word[3], validate=True).decode(word[1].decode())
        except ValueError:
            yield "encoded word does not stand alone: %r" % word[0]


def differences(expect, mail):
    wire = base64.b64decode(mail["wire_b64"])
    yield from wire_faults(wire)
    message = email.message_from_bytes(wire, policy=email.policy.default)
    texts, files = leaves(email.message_from_bytes(wire))

    def differs(field, found, form=lambda value: value):
        wanted = [expect[field]] + expect.get("accept", {}).get(field, []) if expect.get(field) is not None else [found]
        if form(found) not in [form(value) for value in wanted]:
            yield field, found, wanted[0]

    people = lambda found: [[squeezed(name), lower_domain(address)] for name, address in found]
    for field in ("from", "to", "cc", "reply_to"):
        yield from differs(field, mailboxes(message, field.replace("_", "-")), people)
    yield from differs("envelope_from", mail["mail_from"])
    optional = {lower_domain(a) for a in expect.get("rcpt_optional", [])}
    recipients = lambda found: sorted({lower_domain(a) for a in found} - optional)
    yield from differs("rcpt_to", mail["rcpt_to"], recipients)
    if len(set(mail["rcpt_to"])) != len(mail["rcpt_to"]):
        yield "a recipient twice", mail["rcpt_to"]
    for address in expect.get("rcpt_forbidden", []):
        if address in mail["rcpt_to"]:
            yield "rcpt_forbidden", address
    yield from differs("subject", one_line(str(message["subject"] or "")))
    yield from differs("text_parts", texts)
    yield from differs("attachments", files)
    for name, value in expect.get("extra_headers", {}).items():
        found = one_line(str(message[name])).replace('"', "")
        if found != value.replace('"', ""):
            yield name, found, value


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    files = sys.argv[2:] or sorted(glob.glob(os.path.join(here, "*.jsonl")))
    rows = [json.loads(line) for file in files for line in open(file, encoding="utf-8")]
    sent = {mail["id"]: mail for mail in map(json.loads, open(sys.argv[1], encoding="utf-8"))}
    wrong = 0
    for row in rows:
        expect, mail = row["expect"], sent.get(row["id"])
        found = []
        if mail and (expect["outcome"] == "send" or expect.get("either")):
            found = list(differences(expect, mail))
        elif mail or (expect["outcome"] == "send" and not expect.get("either")):
            found = ["was sent" if mail else "was not sent"]
        for difference in found:
            print(row["id"], str(difference)[:400])
        wrong += bool(found)
    print("%d of %d rows right" % (len(rows) - wrong, len(rows)))
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
