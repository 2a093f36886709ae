-- A row of a producers' table that we know something of. Times are milliseconds since 1970, UTC.
CREATE TABLE IF NOT EXISTS mailqueue_delivery (
  id TEXT NOT NULL,
  queue_table TEXT NOT NULL,
  mid BIGINT NOT NULL,
  fingerprint TEXT NULL,              -- of the content that the record was made for
  state TEXT NOT NULL,
  reason TEXT NULL,
  detail TEXT NULL,
  attempts BIGINT NOT NULL DEFAULT 0,
  unknowns BIGINT NOT NULL DEFAULT 0, -- attempts of which nobody knows the outcome
  created BIGINT NOT NULL,            -- first seen; also the mail's Date
  first_deferred BIGINT NULL,
  next_attempt BIGINT NULL,           -- NULL in a claim: the row was waiting
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
  position BIGINT NOT NULL,
  address TEXT NOT NULL,
  state TEXT NOT NULL,
  reply TEXT NULL,
  at BIGINT NOT NULL,
  PRIMARY KEY (record, address_key)
);

-- kind 'dispatcher': a heartbeat that counts up. kinds 'queue' and 'relay': the emergency stop.
CREATE TABLE IF NOT EXISTS mailqueue_dispatcher (
  kind TEXT NOT NULL,
  id TEXT NOT NULL,
  heartbeat BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (kind, id)
);
