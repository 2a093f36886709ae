-- A row of a producers' table that we know something of. Times are milliseconds since 1970, UTC.
CREATE TABLE IF NOT EXISTS mailqueue_delivery (
  id TEXT NOT NULL,
  queue_table TEXT NOT NULL,
  mid INTEGER NOT NULL,
  fingerprint TEXT NULL,              -- of the content that the record was made for
  state TEXT NOT NULL,
  reason TEXT NULL,
  detail TEXT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  unknowns INTEGER NOT NULL DEFAULT 0, -- attempts of which nobody knows the outcome
  created INTEGER NOT NULL,            -- first seen; also the mail's Date
  first_deferred INTEGER NULL,
  next_attempt INTEGER NULL,           -- NULL in a claim: the row was waiting
  owner TEXT NULL,                    -- the dispatcher that has claimed the row
  claim TEXT NULL,                    -- which of its claims
  last_reply TEXT NULL,
  message_id TEXT NULL,
  PRIMARY KEY (id),
  CONSTRAINT mailqueue_delivery_row UNIQUE (queue_table, mid)
);
CREATE INDEX IF NOT EXISTS mailqueue_delivery_due ON mailqueue_delivery (queue_table, state, next_attempt, mid);

-- What became of a recipient so far.
CREATE TABLE IF NOT EXISTS mailqueue_recipient (
  record TEXT NOT NULL,
  address_key TEXT NOT NULL,          -- of the address, which is too long for an index
  position INTEGER NOT NULL,
  address TEXT NOT NULL,
  state TEXT NOT NULL,
  reply TEXT NULL,
  at INTEGER NOT NULL,
  PRIMARY KEY (record, address_key)
);

-- kind 'dispatcher': a heartbeat that counts up. kinds 'queue' and 'relay': the emergency stop.
CREATE TABLE IF NOT EXISTS mailqueue_dispatcher (
  kind TEXT NOT NULL,
  id TEXT NOT NULL,
  heartbeat INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (kind, id)
);
