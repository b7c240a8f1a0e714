-- compatible: 1
-- Alarms are kept as long as a job is about them.
CREATE INDEX job_event ON job (event);
