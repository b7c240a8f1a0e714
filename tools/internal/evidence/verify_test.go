package evidence

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
	"pgregory.net/rapid"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

func TestVerifyEachScheme(t *testing.T) {
	for _, scheme := range []string{"rsassa", "rsapss", "ecdsa"} {
		d := newDevice(t, scheme)
		d.measure("/bin/sh")
		want := d.expected()
		c, state := accepted(t, d.evidence(want, 0), want, State{})
		if got := paths(t, c); !slices.Equal(got, []string{"boot_aggregate", "/bin/sh"}) {
			t.Errorf("%s: entries %v", scheme, got)
		}
		if !c.Rebooted() || c.Covered() != 2 || c.Pending() != 0 || state.Entries != 2 || c.AK() != d.ak || state.Firmware != 7 {
			t.Errorf("%s: %+v, %+v", scheme, c, state)
		}
		if v, ok := c.PCR(ima.SHA256, 10); !ok || !bytes.Equal(v, d.pcrs[ima.SHA256][10]) {
			t.Errorf("%s: PCR 10 is %x", scheme, v)
		}
		if _, ok := c.PCR(ima.SHA1, 10); ok {
			t.Error("a PCR that was not quoted is claimed")
		}
	}
}

// TestClaimsHaveOneMaker: the zero value claims nothing, and no field can be set from outside.
func TestClaimsHaveOneMaker(t *testing.T) {
	for f := range reflect.TypeFor[Claims]().Fields() {
		if f.IsExported() {
			t.Errorf("Claims.%s can be set by anybody", f.Name)
		}
	}
	var zero Claims
	if zero.AK() != nil || len(zero.PCRs()) != 0 || zero.Covered() != 0 || zero.Rebooted() {
		t.Error("the zero value claims something")
	}
}

// TestIncrements: the second attestation sends and claims only what is new.
func TestIncrements(t *testing.T) {
	d := newDevice(t, "ecdsa")
	want := d.expected()
	_, state := accepted(t, d.evidence(want, state0(want)), want, State{})
	d.measure("/bin/a")
	d.measure("/bin/b")
	d.tick()
	if got := state.Offset(want); got != 1 {
		t.Fatalf("offset %d, want 1", got)
	}
	c, state := accepted(t, d.evidence(want, 1), want, stored(t, state))
	if got := paths(t, c); !slices.Equal(got, []string{"/bin/a", "/bin/b"}) || c.First() != 1 || c.Rebooted() {
		t.Errorf("entries %v from %d", got, c.First())
	}
	// Nothing new at all.
	d.tick()
	c, state = accepted(t, d.evidence(want, 3), want, stored(t, state))
	if got := paths(t, c); len(got) != 0 || c.Covered() != 3 {
		t.Errorf("entries %v, covered %d", got, c.Covered())
	}
	// The whole list again, though the tail was asked for.
	d.tick()
	c, _ = accepted(t, d.evidence(want, 0), want, state)
	if got := paths(t, c); len(got) != 3 || c.First() != 0 {
		t.Errorf("entries %v from %d", got, c.First())
	}
}

func state0(want Expected) int { return State{}.Offset(want) }

// stored takes a state through the form in which a database has it.
func stored(t *testing.T, s State) State {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back State
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, back); diff != "" {
		t.Fatal(diff)
	}
	return back
}

func TestQuoteAttacks(t *testing.T) {
	d, other := newDevice(t, "ecdsa"), newDevice(t, "ecdsa")
	want := d.expected()
	selection, _ := want.PCRs.TPM()
	for _, c := range []struct {
		name string
		do   func(*Evidence)
		code Code
	}{
		{"one bit of the message", func(e *Evidence) { e.Message[40] ^= 1 }, CodeSignature},
		{"one bit of the signature", func(e *Evidence) { e.Signature[10] ^= 1 }, CodeSignature},
		{"one bit of a PCR", func(e *Evidence) { e.PCRs[140] ^= 1 }, CodePCRDigest},
		{"signed by another key", func(e *Evidence) { e.Signature = other.sign(e.Message) }, CodeSignature},
		{"no message", func(e *Evidence) { e.Message = nil }, CodeMalformed},
		{"no signature", func(e *Evidence) { e.Signature = nil }, CodeMalformed},
		{"no PCRs", func(e *Evidence) { e.PCRs = nil }, CodeMalformed},
		{"no list", func(e *Evidence) { e.List = nil }, CodeMissingLog},
		{"an empty list", func(e *Evidence) { e.List = []byte{} }, CodeMismatch},
		{"another algorithm", func(e *Evidence) { e.Signature[1] = byte(tpm2.TPMAlgRSASSA) }, CodeMalformed},
		{"weak hash", func(e *Evidence) { e.Signature[3] = byte(tpm2.TPMAlgSHA1) }, CodeSignature},
		{"bytes behind the signature", func(e *Evidence) { e.Signature = append(e.Signature, 0) }, CodeMalformed},
		{"bytes behind the message", func(e *Evidence) { e.Message = append(e.Message, 0); e.Signature = d.sign(e.Message) }, CodeMalformed},
		{"not made by a TPM", func(e *Evidence) { e.Message[0] = 0; e.Signature = d.sign(e.Message) }, CodeNotQuote},
		{"a certification", func(e *Evidence) { e.Message[5] = 0x17; e.Signature = d.sign(e.Message) }, CodeNotQuote},
		{"huge message", func(e *Evidence) { e.Message = make([]byte, 1<<20) }, CodeMalformed},
		{"values in another order", func(e *Evidence) {
			values := d.values(selection)
			slices.Reverse(values)
			e.PCRs, _ = AppendPCRBlob(nil, selection, values)
		}, CodePCRDigest},
		{"a value less", func(e *Evidence) { e.PCRs, _ = AppendPCRBlob(nil, selection, d.values(selection)[1:]) }, CodePCRDigest},
		{"a value more", func(e *Evidence) {
			e.PCRs, _ = AppendPCRBlob(nil, selection, append(d.values(selection), make([]byte, 32)))
		}, CodePCRDigest},
	} {
		t.Run(c.name, func(t *testing.T) {
			ev := d.evidence(want, 0)
			c.do(ev)
			refused(t, ev, want, State{}, c.code)
		})
	}
}

// TestReplayedNonce: evidence for one challenge answers no other, not even an empty one.
func TestReplayedNonce(t *testing.T) {
	a, b := newDevice(t, "ecdsa"), newDevice(t, "ecdsa")
	want := a.expected()
	ev := a.evidence(want, 0)
	_, state := accepted(t, ev, want, State{})
	refused(t, ev, want, state, CodeRewind) // a nonce used twice: the clock did not move
	want.Nonce = slices.Repeat([]byte{1}, 32)
	refused(t, ev, want, State{}, CodeNonce)
	ofB := b.expected()
	ofB.Nonce = want.Nonce
	swapped := a.expected()
	refused(t, b.evidence(ofB, 0), swapped, State{}, CodeSignature)
	for _, short := range [][]byte{nil, {}, []byte("short")} {
		x := a.expected()
		x.Nonce = short
		refused(t, a.evidence(x, 0), x, State{}, CodeExpectation)
	}
}

// TestSelections is CVE-2022-0317 and its kin: what is not quoted proves nothing.
func TestSelections(t *testing.T) {
	d := newDevice(t, "ecdsa")
	all := d.expected()
	for _, c := range []struct {
		name  string
		asked Selection
		given Selection
		code  Code // "": accepted
	}{
		{"none", all.PCRs, Selection{"sha256": {0}}, CodeSelection},
		{"without PCR 10", all.PCRs, Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}, CodeSelection},
		{"an extra PCR", all.PCRs, Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}}, CodeSelection},
		{"PCR 16 besides", all.PCRs, Selection{"sha256": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16}}, ""},
		{"another bank", all.PCRs, Selection{"sha384": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}, CodeSelection},
		{"a bank more", Selection{"sha256": {10}}, Selection{"sha256": {10}, "sha1": {10}}, CodeSelection},
		{"a bank less", Selection{"sha256": {10}, "sha384": {10}}, Selection{"sha256": {10}}, CodeSelection},
		{"two banks", Selection{"sha256": {10}, "sha1": {10}}, Selection{"sha256": {10}, "sha1": {10}}, ""},
		{"three banks", Selection{"sha384": {10}, "sha256": {10}, "sha1": {10}}, Selection{"sha384": {10}, "sha256": {10}, "sha1": {10}}, ""},
		{"SHA-1 alone", Selection{"sha1": {10}}, Selection{"sha1": {10}}, CodeSelection},
		{"SHA-1 for one PCR", Selection{"sha1": {0, 10}, "sha256": {10}}, Selection{"sha1": {0, 10}, "sha256": {10}}, CodeSelection},
		{"IMA's PCR was not asked for", Selection{"sha256": {0}}, Selection{"sha256": {0}}, CodeExpectation},
	} {
		t.Run(c.name, func(t *testing.T) {
			given := all
			given.PCRs = c.given
			ev := d.evidence(given, 0)
			want := all
			want.PCRs = c.asked
			if c.code != "" {
				refused(t, ev, want, State{}, c.code)
				return
			}
			accepted(t, ev, want, State{})
		})
	}
	for name, s := range map[string]Selection{"nothing": {}, "empty": {"sha256": {}}, "unknown": {"md5": {10}}, "number": {"sha256": {99}}, "negative": {"sha256": {-1}}, "twice": {"sha256": {1, 1}}} {
		want := all
		want.PCRs = s
		if _, _, err := Verify(d.evidence(all, 0), want, State{}); CodeOf(err) != CodeExpectation {
			t.Errorf("%s: %v", name, err)
		}
	}
	sha1 := all
	sha1.PCRs, sha1.SHA1Bank = Selection{"sha1": {10}}, true
	accepted(t, d.evidence(sha1, 0), sha1, State{})
	none := all
	none.AK = nil
	refused(t, d.evidence(all, 0), none, State{}, CodeExpectation)
}

// TestEachMissingPCR is CVE-2025-64186: an absent value never counts as a matching one.
func TestEachMissingPCR(t *testing.T) {
	d := newDevice(t, "ecdsa")
	want := d.expected()
	for drop := range 11 {
		given := want
		given.PCRs = Selection{"sha256": slices.DeleteFunc(slices.Clone(want.PCRs["sha256"]), func(p int) bool { return p == drop })}
		refused(t, d.evidence(given, 0), want, State{}, CodeSelection)
	}
}

func TestBootsAndCounters(t *testing.T) {
	d := newDevice(t, "ecdsa")
	want := d.expected()
	_, first := accepted(t, d.evidence(want, 0), want, State{})
	clock := d.attest.clock
	at := func(ms uint64, reset, restart uint32) *Evidence {
		d.attest.clock = Clock{Milliseconds: clock.Milliseconds + ms, ResetCount: clock.ResetCount + reset, RestartCount: clock.RestartCount + restart, Safe: true}
		return d.evidence(want, 1)
	}
	minus := func(n uint32) uint32 { return -n }
	refused(t, at(0, 0, 0), want, first, CodeRewind)
	refused(t, at(minusMs, 0, 0), want, first, CodeRewind)
	refused(t, at(1, minus(1), 0), want, first, CodeRewind)
	refused(t, at(1, 0, minus(1)), want, first, CodeRewind)
	refused(t, at(1, 1, 0), want, first, CodeReboot) // booted, but goes on with the old list
	if c, _ := accepted(t, at(1, 0, 1), want, first); c.Rebooted() {
		t.Error("a resume from suspend is no boot")
	}
	d.boot()
	d.measure("/new")
	d.attest.clock = Clock{Milliseconds: 1, ResetCount: clock.ResetCount + 1} // the power had failed: the clock went back
	c, state := accepted(t, d.evidence(want, 0), want, first)
	if !c.Rebooted() || c.Clock().Safe || state.Entries != 2 || len(paths(t, c)) != 2 {
		t.Errorf("after a boot: %+v, %+v", c, state)
	}
	// Counters of some keys carry an offset of the TPM's and wrap around.
	d.attest.clock.ResetCount = 0xffffffff
	_, state = accepted(t, d.evidence(want, 0), want, State{})
	d.attest.clock = Clock{Milliseconds: 1, ResetCount: 0}
	if c, _ := accepted(t, d.evidence(want, 0), want, state); !c.Rebooted() {
		t.Error("a counter that wraps around is a boot")
	}
}

const minusMs = ^uint64(0) // -1

// TestNewKey: with another enrolled key nothing of the old state holds.
func TestNewKey(t *testing.T) {
	old, d := newDevice(t, "ecdsa"), newDevice(t, "rsassa")
	oldWant := old.expected()
	old.attest.clock.ResetCount = 100
	_, state := accepted(t, old.evidence(oldWant, 0), oldWant, State{})
	want := d.expected()
	if state.Offset(want) != 0 {
		t.Error("another key goes on with the old list")
	}
	c, _ := accepted(t, d.evidence(want, 0), want, state)
	if !c.Rebooted() {
		t.Error("the first evidence of a key is of a boot")
	}
}

func TestListAttacks(t *testing.T) {
	d := newDevice(t, "ecdsa")
	for _, p := range []string{"/a", "/b", "/c", "/d"} {
		d.measure(p)
	}
	want := d.expected()
	size := len(d.from(4)) // of one entry
	for _, c := range []struct {
		name string
		do   func([]byte) []byte
		code Code
	}{
		{"the last entry is cut off", func(l []byte) []byte { return l[:len(l)-size] }, CodeMismatch},
		{"the first entry is cut off", func(l []byte) []byte { return l[len(l)-4*size:] }, CodeMismatch},
		{"half an entry is cut off", func(l []byte) []byte { return l[:len(l)-size/2] }, CodeLog},
		{"an entry twice", func(l []byte) []byte {
			return append(l[:len(l)-size:len(l)-size], slices.Repeat(l[len(l)-size:], 2)...)
		}, ""},
		{"an entry twice in the middle", func(l []byte) []byte {
			return slices.Concat(l[:len(l)-2*size], l[len(l)-2*size:len(l)-size], l[len(l)-2*size:])
		}, CodeMismatch},
		{"two entries exchanged", func(l []byte) []byte {
			return slices.Concat(l[:len(l)-2*size], l[len(l)-size:], l[len(l)-2*size:len(l)-size])
		}, CodeMismatch},
		{"a digest changed", func(l []byte) []byte { l[len(l)-size+50] ^= 1; return l }, CodeTemplate},
		{"a path changed", func(l []byte) []byte { l[len(l)-2] = 'X'; return l }, CodeTemplate},
		{"the template digest changed", func(l []byte) []byte { l[len(l)-size+4] ^= 1; return l }, CodeTemplate},
		{"another PCR", func(l []byte) []byte { l[len(l)-size] = 11; return l }, CodeUnquoted},
		{"a PCR that no TPM has", func(l []byte) []byte { l[len(l)-size] = 99; return l }, CodeLog},
		{"garbage behind the list", func(l []byte) []byte { return append(l, 1, 2, 3) }, CodeLog},
		{"a changed entry behind the quote", func(l []byte) []byte { l = append(l, l[len(l)-size:]...); l[len(l)-2] = 'X'; return l }, CodeTemplate},
	} {
		t.Run(c.name, func(t *testing.T) {
			ev := d.evidence(want, 0)
			ev.List = c.do(slices.Clone(ev.List))
			if c.code != "" {
				refused(t, ev, want, State{}, c.code)
				return
			}
			if claims, _ := accepted(t, ev, want, State{}); claims.Pending() != 1 {
				t.Errorf("%d entries are pending, want 1", claims.Pending())
			}
		})
	}
	_, state := accepted(t, d.evidence(want, 0), want, State{})
	d.tick()
	refused(t, d.evidence(want, 4), want, state, CodeOffset)
	d.measure("/e")
	ev := d.evidence(want, 5)
	ev.Offset = 6
	refused(t, ev, want, state, CodeOffset)
}

// TestEveryPermutation: no other order of the entries leads to the quoted value.
func TestEveryPermutation(t *testing.T) {
	d := newDevice(t, "ecdsa")
	for _, p := range []string{"/a", "/b", "/c", "/d", "/e", "/f"} {
		d.measure(p)
	}
	want := d.expected()
	ev := d.evidence(want, 0)
	var entries [][]byte
	for i := range 7 {
		from := d.from(i)
		entries = append(entries, from[:len(from)-len(d.from(i+1))])
	}
	rapid.Check(t, func(r *rapid.T) {
		order := rapid.Permutation([]int{0, 1, 2, 3, 4, 5, 6}).Draw(r, "order")
		var list []byte
		for _, i := range order {
			list = append(list, entries[i]...)
		}
		e := *ev
		e.List = list
		c, _, err := Verify(&e, want, State{})
		if slices.IsSorted(order) != (err == nil) || (c == nil) != (err != nil) {
			r.Fatalf("order %v: %v", order, err)
		}
	})
}

// TestPending: entries behind the quote prove nothing, and have to come under the next.
func TestPending(t *testing.T) {
	d := newDevice(t, "ecdsa")
	want := d.expected()
	quoted := d.evidence(want, 0)
	d.measure("/late")
	quoted.List = d.from(0)
	c, state := accepted(t, quoted, want, State{})
	if got := paths(t, c); !slices.Equal(got, []string{"boot_aggregate"}) || c.Pending() != 1 {
		t.Errorf("entries %v, %d pending", got, c.Pending())
	}
	for e, err := range c.Tail() {
		if err != nil || string(e.Path) != "/late" || e.Index != 1 {
			t.Errorf("pending %v, %v", e, err)
		}
	}
	d.tick()
	if c, state = accepted(t, d.evidence(want, 1), want, state); c.Pending() != 0 || state.Stalled != 0 {
		t.Errorf("then: %d pending, %+v", c.Pending(), state)
	}
}

// TestTailThatIsNeverQuoted turns red, also where the entries are not sent again; it turns
// good again when they come under a quote.
func TestTailThatIsNeverQuoted(t *testing.T) {
	for _, again := range []bool{true, false} {
		d := newDevice(t, "ecdsa")
		want := d.expected()
		ev := d.evidence(want, 0)
		data := d.append(10, "/never/extended")
		ev.List = d.from(0)
		_, state := accepted(t, ev, want, State{})
		for i := range 4 {
			d.tick()
			ev := d.evidence(want, 1)
			if !again {
				ev.List = []byte{}
			}
			if i == 0 {
				_, state = accepted(t, ev, want, state)
				continue
			}
			refused(t, ev, want, state, CodeStalled)
		}
		d.extend(10, data)
		d.tick()
		if _, state = accepted(t, d.evidence(want, 1), want, state); state.Stalled != 0 {
			t.Errorf("after it was quoted: %+v", state)
		}
	}
}

func TestNothingMeasured(t *testing.T) {
	d := newDevice(t, "ecdsa")
	d.pcrs[ima.SHA256][10] = make([]byte, 32)
	want := d.expected()
	ev := d.evidence(want, 0)
	ev.List = []byte{}
	refused(t, ev, want, State{}, CodeMissingLog)
	// A PCR of zeros is a prefix of every list.
	ev.List = d.from(0)
	refused(t, ev, want, State{}, CodeMissingLog)
}

// TestChangedSelection: values of a bank that was not quoted before begin with the boot.
func TestChangedSelection(t *testing.T) {
	d := newDevice(t, "ecdsa")
	want := d.expected()
	_, state := accepted(t, d.evidence(want, 0), want, State{})
	d.tick()
	want.PCRs = Selection{"sha256": {10}, "sha384": {10}}
	if got := state.Offset(want); got != 0 {
		t.Errorf("offset %d, want 0", got)
	}
	refused(t, d.evidence(want, 1), want, state, CodeOffset)
	accepted(t, d.evidence(want, 0), want, state)
}

func TestErrorsNameTheEntry(t *testing.T) {
	d := newDevice(t, "ecdsa")
	d.measure("/bin/sh")
	want := d.expected()
	ev := d.evidence(want, 0)
	ev.List = bytes.Replace(ev.List, []byte("/bin/sh"), []byte("/bin/xx"), 1)
	_, _, err := Verify(ev, want, State{})
	if err == nil || !strings.Contains(err.Error(), "entry 1") || !strings.Contains(err.Error(), "/bin/xx") {
		t.Errorf("%v", err)
	}
}
