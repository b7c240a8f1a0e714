-- compatible: 1
-- Of which events others are told, and what only that moment knows. alarmed says that the
-- last notice of a device was of a bad verdict.
ALTER TABLE attestation ADD COLUMN alarmed BIGINT NOT NULL DEFAULT 0;

CREATE TABLE notice (
    seq    BIGINT PRIMARY KEY,
    device TEXT COLLATE "C" NOT NULL,
    grp    TEXT NOT NULL,
    labels TEXT NOT NULL,
    status TEXT NOT NULL
);

CREATE INDEX notice_grp ON notice (grp, seq);

CREATE INDEX notice_device ON notice (device, grp, seq);

CREATE INDEX job_target ON job (dead, target, next_at);
