package store

import "context"

// NoteAndFail is a write that adds an event and then fails.
func NoteAndFail(ctx context.Context, s *Store, e Event, err error) error {
	return s.write(ctx, "", func(t *tx) error {
		if failed := t.event(e); failed != nil {
			return failed
		}
		return err
	})
}

// Hot are the statements that an attestation, a session or a worker's poll consists of,
// with values for their parameters. None may read a table from end to end.
func Hot(s *Store) map[string][]any {
	b := []byte{1}
	return map[string][]any{
		sqlState:          {int64(1), "d"},
		sqlAllowed:        {"d"},
		sqlNegotiate:      {"d", int64(1), b},
		sqlAttest:         {"d", int64(1), int64(1), int64(1), int64(1), b, b, "trusted", "", "{}", "", int64(1), int64(1), int64(1), int64(1), int64(1), b},
		sqlTakeSession:    {"s", int64(1)},
		sqlProveSession:   {"s", b, int64(1), int64(1)},
		sqlTokenDevice:    {b, int64(1)},
		sqlTryAttempts:    {"d", "p", int64(3), int64(1)},
		sqlOverdue:        {int64(1), int64(10)},
		sqlClaimable:      {int64(1), int64(10), "hook"},
		sqlAlarms:         {"g", int64(1), int64(10)},
		sqlEventsOf:       {"d", int64(9), int64(10)},
		sqlEvents:         {int64(9), int64(10)},
		sqlBody:           {b},
		sqlDevice:         {int64(1), "d"},
		sqlSecretRefs:     {"d"},
		sqlTurns:          {int64(1), int64(10)},
		sqlEndClaim:       {"d", int64(1), int64(1), "2.2", "", int64(0)},
		sqlPrune + ")":    {int64(1), int64(1), int64(10)},
		sqlNewSession:     {"s", "d", b, int64(1), int64(1)},
		sqlEvictChallenge: {"d", "s", int64(100), int64(15)},
	}
}
