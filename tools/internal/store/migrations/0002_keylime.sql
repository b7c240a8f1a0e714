-- compatible: 1
-- What a tenant of Keylime said of the devices that it added, and its measured boot
-- policies, which are no policies by themselves: see server/keylime.go.

CREATE TABLE keylime_mbpolicy (
    name    TEXT COLLATE "C" PRIMARY KEY,
    digest  BYTEA NOT NULL,
    size    BIGINT NOT NULL,
    body    BYTEA NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE keylime_agent (
    device     TEXT COLLATE "C" PRIMARY KEY REFERENCES device (id) ON DELETE CASCADE,
    runtime    TEXT COLLATE "C" NOT NULL,
    mbpolicy   TEXT COLLATE "C" REFERENCES keylime_mbpolicy (name),
    tpm_policy TEXT NOT NULL,
    settings   TEXT NOT NULL,
    created    BIGINT NOT NULL
);

CREATE INDEX keylime_agent_runtime ON keylime_agent (runtime);

CREATE INDEX keylime_agent_mbpolicy ON keylime_agent (mbpolicy);
