package evidence

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
)

// TestHistories lives through boots, suspends and measurements in any order. What is
// accepted has newer counters each time and proves every entry exactly once a boot; what was
// accepted once is never again, whatever happened in between.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		d := newDevice(t, "ecdsa")
		want := d.expected()
		var state State
		var old []*Evidence
		var proven, measured []string
		measured = []string{"boot_aggregate"}
		boots := 0
		r.Repeat(map[string]func(*rapid.T){
			"measure": func(*rapid.T) {
				p := fmt.Sprintf("/file%d", len(measured))
				d.measure(p)
				measured = append(measured, p)
			},
			"suspend": func(*rapid.T) { d.attest.clock.RestartCount++ },
			"suspend, then boot": func(*rapid.T) { // TPM Restart: PCRs are new, resetCount is not
				d.boot()
				d.attest.clock.RestartCount++
				boots++
				measured = []string{"boot_aggregate", fmt.Sprintf("/boot%d", boots)}
				d.measure(measured[1])
			},
			"boot": func(*rapid.T) {
				d.boot()
				d.attest.clock.ResetCount++
				d.attest.clock.RestartCount = 0
				measured = []string{"boot_aggregate"}
			},
			"attest": func(r *rapid.T) {
				d.tick()
				booted := len(state.AK) == 0 || d.attest.clock.ResetCount != state.Clock.ResetCount
				offset := state.Offset(want)
				if !booted && !slices.Equal(proven, measured[:min(len(proven), len(measured))]) {
					ev := d.evidence(want, min(offset, len(measured)))
					ev.Offset = offset
					if _, _, err := Verify(ev, want, state); CodeOf(err) != CodeMismatch {
						r.Fatalf("after a boot that the counters do not tell from a resume: %v", err)
					}
					booted, offset = true, 0
				}
				if booted && offset > 0 {
					if _, _, err := Verify(d.evidence(want, 0+min(offset, len(measured))), want, state); CodeOf(err) != CodeReboot {
						r.Fatalf("after a boot: %v", err)
					}
					offset = 0
				}
				ev := d.evidence(want, offset)
				c, next, err := Verify(ev, want, state)
				if err != nil {
					r.Fatal(err)
				}
				if c.Rebooted() != booted {
					r.Fatalf("rebooted %v, want %v", c.Rebooted(), booted)
				}
				if booted {
					proven = nil
				}
				proven = append(proven, paths(t, c)...)
				if !slices.Equal(proven, measured) {
					r.Fatalf("proven %v, measured %v", proven, measured)
				}
				state, old = next, append(old, ev)
			},
			"": func(r *rapid.T) {
				for _, ev := range old {
					if c, _, err := Verify(ev, want, state); err == nil || c != nil || CodeOf(err) != CodeRewind {
						r.Fatalf("old evidence: %v", err)
					}
				}
			},
		})
	})
}

// TestText: the same list as text proves the same.
func TestText(t *testing.T) {
	ev, want := recorded(t)
	c, _ := accepted(t, ev, want, State{})
	form := ima.Form{ASCII: true, Order: binary.LittleEndian, Hash: ima.SHA1}
	text := *ev
	text.List, text.ListASCII = nil, true
	for e, err := range c.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		text.List = form.Append(text.List, e)
	}
	again, _ := accepted(t, &text, want, State{})
	if !slices.Equal(paths(t, c), paths(t, again)) || again.Covered() != c.Covered() {
		t.Errorf("binary %v, text %v", paths(t, c), paths(t, again))
	}
}
