-- compatible: 1
-- Secrets for devices that are trusted. The body is encrypted by the verifier; a row without
-- one was deleted and stays, so that its revisions are never used again.

CREATE TABLE secret (
    name     TEXT COLLATE "C" PRIMARY KEY,
    revision BIGINT NOT NULL,
    run      TEXT NOT NULL,
    size     BIGINT NOT NULL,
    body     BYTEA,
    created  BIGINT NOT NULL
);

CREATE TABLE secret_device (
    device TEXT COLLATE "C" NOT NULL REFERENCES device (id) ON DELETE CASCADE,
    secret TEXT COLLATE "C" NOT NULL REFERENCES secret (name),
    PRIMARY KEY (device, secret)
);

CREATE INDEX secret_device_secret ON secret_device (secret);

CREATE TABLE secret_group (
    grp    TEXT NOT NULL,
    secret TEXT COLLATE "C" NOT NULL REFERENCES secret (name),
    PRIMARY KEY (grp, secret)
);

CREATE INDEX secret_group_secret ON secret_group (secret);
