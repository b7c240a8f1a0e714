package bootlog

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrReplay means that a log cannot lead to PCR values: it contradicts itself, or lacks
// the digests of the bank.
var ErrReplay = errors.New("event log cannot be replayed")

// Replay returns the values that l gives to all PCRs of the bank of a (PFP 2.3.2: extend).
// PCRs that no event names have their value after reset. EV_NO_ACTION extends nothing
// (PFP 10.4.5), but may say from which locality the TPM was started, which is
// the value that PCR 0 begins with (PFP 10.4.5.3, TPM 2.0 Library part 3, section 9.3).
func (l *Log) Replay(a Alg) (map[int][]byte, error) {
	if a.sum() == nil {
		return nil, fmt.Errorf("%w: cannot compute %v", ErrReplay, a)
	}
	pcrs := map[int][]byte{}
	for i := range lastPCR + 1 {
		pcrs[i] = make([]byte, a.Size())
		if 17 <= i && i <= 22 { // reset by a dynamic launch, which there was not
			pcrs[i] = bytes.Repeat([]byte{0xff}, a.Size())
		}
	}
	extended, started := false, false // PCR 0; the locality is known
	for i := range l.Events {
		e := &l.Events[i]
		if e.Type == NoAction {
			n, ok, err := e.startupLocality()
			if ok && err == nil && (extended || started) {
				err = errors.New("the startup locality is said too late or again")
			}
			if err != nil {
				return nil, fmt.Errorf("%w: event %d: %w", ErrReplay, i, err)
			}
			if ok {
				started = true
				pcrs[0][a.Size()-1] = n
			}
			continue
		}
		d := e.Digest(a)
		if d == nil {
			return nil, fmt.Errorf("%w: event %d (%v of PCR %d) has no %v digest", ErrReplay, i, e.Type, e.PCR, a)
		}
		pcrs[int(e.PCR)] = a.sum(pcrs[int(e.PCR)], d)
		extended = extended || e.PCR == 0
	}
	return pcrs, nil
}

// startupLocality reads TCG_EfiStartupLocalityEvent; false for any other EV_NO_ACTION.
func (e *Event) startupLocality() (uint8, bool, error) {
	rest, ok := bytes.CutPrefix(e.Data, []byte(startupLocality))
	if !ok {
		return 0, false, nil
	}
	if len(rest) != 1 || rest[0] != 0 && rest[0] != 3 && rest[0] != 4 {
		return 0, true, fmt.Errorf("startup locality %x is neither 0, 3 nor 4", rest)
	}
	return rest[0], true, nil
}

// BootAggregates returns the digests that the first entry of an IMA list, boot_aggregate,
// may have for these PCR values of the bank of a (ima_calc_boot_aggregate_tfm of
// security/integrity/ima/ima_crypto.c): first that of PCR 0-9, which Linux computes since
// 5.8, then that of PCR 0-7, which older ones do, and all for SHA-1.
func BootAggregates(a Alg, pcrs map[int][]byte) ([][]byte, error) {
	last := 9
	if a == SHA1 {
		last = 7
	}
	var values [][]byte
	for i := range last + 1 {
		if len(pcrs[i]) != a.Size() || a.sum() == nil {
			return nil, fmt.Errorf("compute boot_aggregate: PCR %d of %v is missing", i, a)
		}
		values = append(values, pcrs[i])
	}
	older := a.sum(values[:8]...)
	if a == SHA1 {
		return [][]byte{older}, nil
	}
	return [][]byte{a.sum(values...), older}, nil
}
