package evidence

import (
	"encoding/hex"
	"errors"
	"io"
	"iter"
	"slices"

	"github.com/meta-attest/meta-attest/tools/internal/bootlog"
	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// Claims are what evidence proves. Only [Verify] makes them, so whoever holds a *Claims
// holds something authentic; the zero value claims nothing.
type Claims struct {
	ak       *AK
	clock    Clock
	rebooted bool
	pcrs     []PCR
	list     []byte // measurement list from entry first on
	form     ima.Form
	first    int
	events   []bootlog.Event
	covered  int // entries under the quote
	end      int // and with those behind them
}

// PCR is the quoted value of a PCR.
type PCR struct {
	Bank  ima.HashAlgo
	Index int
	Value []byte
}

// AK is the key that signed the quote, the one that [Expected] named.
func (c *Claims) AK() *AK { return c.ak }

// Clock is the TPM's time when it quoted. Where it is not Safe the power had failed.
func (c *Claims) Clock() Clock { return c.clock }

// Rebooted says that this is the first evidence of a boot, or that it may be: see
// [Clock].RestartCount. Entries then begin with the boot's first.
func (c *Claims) Rebooted() bool { return c.rebooted }

// PCRs are all quoted values: bank after bank, ascending.
func (c *Claims) PCRs() []PCR { return slices.Clone(c.pcrs) }

// PCR is one quoted value; false where it was not quoted.
func (c *Claims) PCR(bank ima.HashAlgo, index int) ([]byte, bool) {
	for _, p := range c.pcrs {
		if p.Bank == bank && p.Index == index {
			return slices.Clone(p.Value), true
		}
	}
	return nil, false
}

// BootAggregates are the digests that the kernel's first entry, boot_aggregate, may have
// for the quoted PCRs of bank: see [bootlog.BootAggregates]. Nil where one of those PCRs
// was not quoted in that bank.
func (c *Claims) BootAggregates(bank ima.HashAlgo) [][]byte {
	alg, ok := bootAlg(bank)
	if !ok {
		return nil
	}
	digests, err := bootlog.BootAggregates(alg, c.bankValues(bank))
	if err != nil {
		return nil
	}
	return digests
}

func (c *Claims) bankValues(bank ima.HashAlgo) map[int][]byte {
	values := map[int][]byte{}
	for _, p := range c.pcrs {
		if p.Bank == bank {
			values[p.Index] = p.Value
		}
	}
	return values
}

// Firmware are the events of the firmware's log that lead to quoted PCR values, in the
// order of the log: those of PCR 0 to 9 all, of the others those of PCRs that nobody has
// extended since. They have the digests of quoted banks only. Nil where no log was asked
// for. What of an event's data is proven, [bootlog.Event.Proven] says; its type never is.
func (c *Claims) Firmware() []bootlog.Event { return slices.Clone(c.events) }

// First is the number of the first of Entries in the boot's list: those before it were
// claimed by the evidence before this. Covered is the number of the boot's entries that
// this quote and those before it prove; Pending is how many more were sent.
func (c *Claims) First() int   { return c.first }
func (c *Claims) Covered() int { return c.covered }
func (c *Claims) Pending() int { return c.end - c.covered }

// Entries are the measurements that the quote covers, and that no quote before it did. An
// entry holds until the next; an error ends the sequence, and can only come of a change to
// the bytes after [Verify].
func (c *Claims) Entries() iter.Seq2[*ima.Entry, error] {
	return c.entries(0, c.covered-c.first)
}

// Tail are the measurements behind those: they were made after the quote, or never. They
// prove nothing yet, and are for showing.
func (c *Claims) Tail() iter.Seq2[*ima.Entry, error] {
	return c.entries(c.covered-c.first, c.end-c.covered)
}

func (c *Claims) entries(skip, n int) iter.Seq2[*ima.Entry, error] {
	return func(yield func(*ima.Entry, error) bool) {
		r := ima.NewListReader(c.list, c.form, c.first)
		if err := r.Skip(skip); err != nil {
			yield(nil, err)
			return
		}
		for range n {
			e, err := r.Next()
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// String is for logs: the key's name and the boot, no more.
func (c *Claims) String() string { return "claims of " + hex.EncodeToString(c.ak.name) }
