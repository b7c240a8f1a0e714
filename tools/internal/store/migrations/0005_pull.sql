-- compatible: 1
-- Devices that are polled. Whoever raised claim may write the result of that poll, until
-- next_at, when another may claim. share is half of a payload's key, until it was handed over.
CREATE TABLE pull (
    device   TEXT COLLATE "C" PRIMARY KEY REFERENCES device (id) ON DELETE CASCADE,
    contact  TEXT NOT NULL,
    version  TEXT NOT NULL,
    share    BYTEA,
    handed   BIGINT NOT NULL,
    next_at  BIGINT NOT NULL,
    claim    BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    error    TEXT NOT NULL
);

CREATE INDEX pull_next ON pull (next_at);
