-- compatible: 1
-- Written for PostgreSQL; dialect.go says what SQLite calls the same types. Times are
-- microseconds since 1970 (UTC), 0 means never. Truth values are 0 or 1.

CREATE TABLE device (
    id         TEXT COLLATE "C" PRIMARY KEY,
    ek         BYTEA UNIQUE,
    ek_public  BYTEA,
    ek_certs   BYTEA,
    ak         BYTEA UNIQUE,
    ak_public  BYTEA,
    tls_cert   BYTEA,
    ip         TEXT NOT NULL,
    port       BIGINT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('expected', 'active')),
    attest     BIGINT NOT NULL,
    regcount   BIGINT NOT NULL,
    grp        TEXT NOT NULL,
    labels     TEXT NOT NULL,
    created    BIGINT NOT NULL,
    activated  BIGINT NOT NULL,
    CHECK (state = 'expected' OR (ek IS NOT NULL AND ak IS NOT NULL))
);

CREATE INDEX device_grp ON device (grp, id);

CREATE TABLE attestation (
    device          TEXT COLLATE "C" PRIMARY KEY REFERENCES device (id) ON DELETE CASCADE,
    rev             BIGINT NOT NULL,
    reset_count     BIGINT NOT NULL,
    restart_count   BIGINT NOT NULL,
    clock           BIGINT NOT NULL,
    evidence_state  BYTEA,
    appraisal_state BYTEA,
    status          TEXT NOT NULL CHECK (status <> 'overdue'),
    codes           TEXT NOT NULL,
    detail          TEXT NOT NULL,
    fitted          TEXT NOT NULL,
    since           BIGINT NOT NULL,
    attested        BIGINT NOT NULL,
    due             BIGINT NOT NULL,
    noticed         BIGINT NOT NULL,
    total           BIGINT NOT NULL,
    event           BIGINT NOT NULL,
    next_index      BIGINT NOT NULL,
    last_index      BIGINT NOT NULL,
    pending_index   BIGINT,
    pending_expires BIGINT NOT NULL,
    pending_body    BYTEA,
    CHECK (status <> 'trusted' OR due > 0)
);

CREATE INDEX attestation_due ON attestation (due) WHERE noticed < due;

CREATE TABLE attempt (
    id        TEXT COLLATE "C" PRIMARY KEY,
    device    TEXT COLLATE "C" NOT NULL,
    peer      TEXT COLLATE "C" NOT NULL,
    ek        BYTEA NOT NULL,
    ek_public BYTEA,
    ek_certs  BYTEA,
    ak        BYTEA NOT NULL,
    ak_public BYTEA,
    tls_cert  BYTEA,
    ip        TEXT NOT NULL,
    port      BIGINT NOT NULL,
    answer    BYTEA NOT NULL,
    tries     BIGINT NOT NULL,
    created   BIGINT NOT NULL,
    expires   BIGINT NOT NULL
);

CREATE INDEX attempt_device ON attempt (device, created);

CREATE INDEX attempt_expires ON attempt (expires);

CREATE TABLE session (
    id        TEXT COLLATE "C" PRIMARY KEY,
    device    TEXT COLLATE "C" NOT NULL REFERENCES device (id) ON DELETE CASCADE,
    challenge BYTEA NOT NULL,
    tried     BIGINT NOT NULL,
    token     BYTEA UNIQUE,
    created   BIGINT NOT NULL,
    expires   BIGINT NOT NULL
);

CREATE INDEX session_device ON session (device, created);

CREATE INDEX session_expires ON session (expires);

CREATE TABLE policy (
    name    TEXT COLLATE "C" PRIMARY KEY,
    highest BIGINT NOT NULL
);

CREATE TABLE policy_body (
    digest BYTEA PRIMARY KEY,
    size   BIGINT NOT NULL,
    body   BYTEA NOT NULL
);

CREATE TABLE policy_revision (
    name    TEXT COLLATE "C" NOT NULL REFERENCES policy (name),
    version BIGINT NOT NULL,
    digest  BYTEA NOT NULL REFERENCES policy_body (digest),
    kind    TEXT NOT NULL,
    active  BIGINT NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (name, version),
    UNIQUE (name, digest)
);

CREATE INDEX policy_revision_digest ON policy_revision (digest);

CREATE TABLE policy_epoch (
    one   BIGINT PRIMARY KEY CHECK (one = 1),
    epoch BIGINT NOT NULL
);

INSERT INTO policy_epoch VALUES (1, 0);

CREATE TABLE device_policy (
    device TEXT COLLATE "C" NOT NULL REFERENCES device (id) ON DELETE CASCADE,
    ord    BIGINT NOT NULL,
    policy TEXT COLLATE "C" NOT NULL REFERENCES policy (name),
    PRIMARY KEY (device, ord),
    UNIQUE (device, policy)
);

CREATE INDEX device_policy_policy ON device_policy (policy);

CREATE TABLE event (
    seq      BIGINT PRIMARY KEY,
    at       BIGINT NOT NULL,
    kind     TEXT NOT NULL,
    device   TEXT COLLATE "C" NOT NULL,
    actor    TEXT NOT NULL,
    status   TEXT NOT NULL,
    detail   TEXT NOT NULL,
    evidence BYTEA,
    hash     BYTEA NOT NULL
);

CREATE INDEX event_device ON event (device, seq);

CREATE TABLE chain (
    one  BIGINT PRIMARY KEY CHECK (one = 1),
    seq  BIGINT NOT NULL,
    hash BYTEA NOT NULL
);

CREATE TABLE evidence (
    digest  BYTEA PRIMARY KEY,
    size    BIGINT NOT NULL,
    body    BYTEA NOT NULL,
    trusted BIGINT NOT NULL,
    created BIGINT NOT NULL
);

CREATE INDEX evidence_created ON evidence (trusted, created);

CREATE TABLE job (
    id       TEXT COLLATE "C" PRIMARY KEY,
    target   TEXT NOT NULL,
    event    BIGINT NOT NULL,
    payload  BYTEA,
    attempts BIGINT NOT NULL,
    dead     BIGINT NOT NULL,
    error    TEXT NOT NULL,
    created  BIGINT NOT NULL,
    next_at  BIGINT NOT NULL
);

CREATE INDEX job_next ON job (dead, next_at);

CREATE TABLE token (
    name    TEXT COLLATE "C" PRIMARY KEY,
    role    TEXT NOT NULL,
    hash    BYTEA NOT NULL UNIQUE,
    created BIGINT NOT NULL,
    expires BIGINT NOT NULL
);
