-- A row of a producers' table that we know something of. Times are milliseconds since 1970, UTC.
CREATE TABLE IF NOT EXISTS mailqueue_delivery (
  id CHAR(32) NOT NULL,               -- this record's for ever: numbers come back
  queue_table VARCHAR(128) NOT NULL,
  mid BIGINT NOT NULL,
  fingerprint CHAR(64) NULL,          -- of the content that the record was made for
  state VARCHAR(16) NOT NULL,
  reason VARCHAR(32) NULL,
  detail MEDIUMTEXT CHARACTER SET utf8mb4 NULL,
  attempts BIGINT NOT NULL DEFAULT 0,
  unknowns BIGINT NOT NULL DEFAULT 0, -- attempts of which nobody knows the outcome
  created BIGINT NOT NULL,            -- first seen; also the mail's Date
  first_deferred BIGINT NULL,
  next_attempt BIGINT NULL,           -- NULL in a claim: the row was waiting
  owner VARCHAR(64) NULL,             -- the dispatcher that has claimed the row
  claim CHAR(32) NULL,                -- which of its claims
  last_reply MEDIUMTEXT CHARACTER SET utf8mb4 NULL,
  message_id MEDIUMTEXT CHARACTER SET utf8mb4 NULL,
  PRIMARY KEY (queue_table, mid),
  KEY mailqueue_delivery_due (queue_table, state, next_attempt, mid)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- What became of a recipient so far.
CREATE TABLE IF NOT EXISTS mailqueue_recipient (
  record CHAR(32) NOT NULL,
  address_key CHAR(32) NOT NULL,      -- of the address, which is too long for an index
  position BIGINT NOT NULL,
  address MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL,
  state VARCHAR(16) NOT NULL,
  reply MEDIUMTEXT CHARACTER SET utf8mb4 NULL,
  at BIGINT NOT NULL,
  PRIMARY KEY (record, address_key)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- kind 'dispatcher': a heartbeat that counts up. kinds 'queue' and 'relay': the emergency stop.
CREATE TABLE IF NOT EXISTS mailqueue_dispatcher (
  kind VARCHAR(16) NOT NULL,
  id VARCHAR(128) NOT NULL,
  heartbeat BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (kind, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;
