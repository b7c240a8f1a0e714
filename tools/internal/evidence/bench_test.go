package evidence

import (
	"fmt"
	"testing"
)

// BenchmarkVerify: a steady poll with nothing new, one with twenty new entries, and the
// first evidence of a boot with many.
func BenchmarkVerify(b *testing.B) {
	for _, entries := range []int{0, 20, 100_000} {
		for _, scheme := range []string{"ecdsa", "rsassa"} {
			b.Run(fmt.Sprintf("%s/%d", scheme, entries), func(b *testing.B) {
				d := newDevice(b, scheme)
				want := d.expected()
				_, state := accepted(b, d.evidence(want, 0), want, State{})
				for i := range entries {
					d.measure(fmt.Sprintf("/usr/lib/file%d", i))
				}
				d.tick()
				ev := d.evidence(want, 1)
				b.ReportAllocs()
				for b.Loop() {
					if _, _, err := Verify(ev, want, state); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
