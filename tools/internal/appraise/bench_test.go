package appraise

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// many is a release of n files with paths as long as those of a distribution.
func many(n int) (Release, []string) {
	var list, paths []string
	for i := range n {
		path := fmt.Sprintf("usr/share/package-%04d/locale/some_LANGUAGE/file%d.data", i/50, i)
		list = append(list, path, path, fmt.Sprintf("package-%d", i/50))
		paths = append(paths, path)
	}
	return release("image", list...), paths
}

// BenchmarkList: bytes to verdict, with 100 000 entries and as many files in the release.
func BenchmarkList(b *testing.B) {
	const n = 100_000
	r, paths := many(n)
	ref := compile(b, "", r)
	d := newDevice(b)
	for i := range paths { // not in the order of the release
		path := paths[i*7919%n]
		d.file("/"+path, content(path))
	}
	ev, want := d.evidence(0)
	for _, part := range []string{"verify", "appraise", "both"} {
		b.Run(part, func(b *testing.B) {
			b.ReportAllocs()
			c, _, err := evidence.Verify(ev, want, evidence.State{})
			before := cpu(b)
			for b.Loop() {
				if part != "appraise" {
					c, _, err = evidence.Verify(ev, want, evidence.State{})
				}
				if err != nil {
					b.Fatal(err)
				}
				if part == "verify" {
					continue
				}
				if v, _, err := Appraise(c, ref, State{}); err != nil || v.Status != Trusted || v.Counts.Files != n {
					b.Fatal(told(v), err)
				}
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "entries/s")
			b.ReportMetric(float64(b.N)*n/(cpu(b)-before).Seconds(), "entries/cpu-s")
		})
	}
}

// cpu is the time that this process had a processor: on a machine that others use too, the
// clock on the wall says little.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPoll: an appraisal with nothing new or with twenty entries, its state read and
// written, whatever the size of the reference.
func BenchmarkPoll(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		r, paths := many(n)
		ref := compile(b, "", r)
		for _, fresh := range []int{0, 20} {
			b.Run(fmt.Sprintf("reference=%d/new=%d", n, fresh), func(b *testing.B) {
				d := newDevice(b)
				d.file("/"+paths[0], content(paths[0]))
				_, s := judged(b, d.attest(0), ref, State{})
				kept, err := s.MarshalBinary()
				if err != nil {
					b.Fatal(err)
				}
				for _, path := range paths[1 : fresh+1] {
					d.file("/"+path, content(path))
				}
				c := d.attest(-1)
				b.ReportAllocs()
				for b.Loop() {
					var s State
					if err := s.UnmarshalBinary(kept); err != nil {
						b.Fatal(err)
					}
					v, next, err := Appraise(c, ref, s)
					if err != nil || v.Status != Trusted {
						b.Fatal(told(v), err)
					}
					if _, err := next.MarshalBinary(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(kept)), "state-bytes")
			})
		}
	}
}

// BenchmarkCompile: of a release with 100 000 files.
func BenchmarkCompile(b *testing.B) {
	r, _ := many(100_000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(Rules{}, r); err != nil {
			b.Fatal(err)
		}
	}
}

// TestMemory: a reference of 100 000 files, and one of two releases that share most.
func TestMemory(t *testing.T) {
	const n = 100_000
	r, _ := many(n)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ref := compile(t, "", r, Release{Name: "next", Files: r.Files})
	runtime.GC()
	runtime.ReadMemStats(&after)
	held := int(after.HeapAlloc) - int(before.HeapAlloc)
	t.Logf("%d bytes on the heap, %d by its own account", held, ref.Size())
	if held > 25<<20 || ref.Size() > 25<<20 {
		t.Error("a reference of 100 000 files has to stay below 25 MiB")
	}
	runtime.KeepAlive(ref)
}
