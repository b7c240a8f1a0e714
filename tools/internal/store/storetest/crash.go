package storetest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// writerEnv makes the test program a writer, see [Writer].
const writerEnv = "STORETEST_WRITER"

// Writer is to be called by TestMain before anything else. In a process that the crash
// test started it attests for ever, says what was acknowledged, and never returns.
func Writer() {
	url := os.Getenv(writerEnv)
	if url == "" {
		return
	}
	fmt.Println("end:", writeForEver(url)) // only an error ends it
	os.Exit(1)
}

func writeForEver(url string) error {
	ctx := context.Background()
	s, err := store.Open(ctx, url)
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	errs := make(chan error, crashDevices)
	for n := range crashDevices {
		group.Go(func() {
			id := fmt.Sprint("d", n)
			for {
				st, err := s.State(ctx, id, Start)
				if err != nil {
					errs <- err
					return
				}
				clock := uint64(1)
				if st.Counters != nil {
					clock = st.Counters.Clock + 1
				}
				r := good(Start, 1, 0, clock)
				r.Record = clock%10 == 0
				if _, err := s.Attest(ctx, st, r); err != nil {
					errs <- err
					return
				}
				fmt.Printf("ack %s %d\n", id, clock)
			}
		})
	}
	return <-errs
}

const crashDevices = 8

// A process is killed while it writes, three times: what it acknowledged is there.
func testCrash(t *testing.T, url string) {
	s := open(t, url)
	for n := range crashDevices {
		Enrol(t, s, fmt.Sprint("d", n))
	}
	must(t, s.Close())
	program, err := os.Executable()
	must(t, err)
	acked := map[string]uint64{}
	for round := range 3 {
		cmd := exec.Command(program)
		cmd.Env = append(os.Environ(), writerEnv+"="+url)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var id string
			var clock uint64
			if _, err := fmt.Sscanf(lines.Text(), "ack %s %d", &id, &clock); err != nil {
				if n >= 200 {
					break // the kill cut the line
				}
				t.Errorf("writer: %s", lines.Text())
				continue
			}
			acked[id] = max(acked[id], clock)
			if n == 200+round {
				must(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait() // killed
		again, err := store.Open(t.Context(), url)
		must(t, err)
		for id, clock := range acked {
			// One more may have been written than was said.
			if got := state(t, again, id, Start); got.Counters.Clock < clock || got.Counters.Clock > clock+1 || uint64(got.Verdict.Total) != got.Counters.Clock {
				t.Errorf("round %d, %s: acknowledged %d, found %d of %d", round, id, clock, got.Counters.Clock, got.Verdict.Total)
			}
		}
		_, err = again.VerifyChain(t.Context(), store.Head{})
		must(t, err)
		must(t, again.Close())
	}
	if len(acked) != crashDevices {
		t.Errorf("acknowledged: %v", acked)
	}
}

// A write that fails half-way takes none of those with it that share its transaction.
func testBadWriteInBatch(t *testing.T, url string) {
	s, ctx := open(t, url), t.Context()
	var group sync.WaitGroup
	for n := range 200 {
		group.Go(func() {
			id := fmt.Sprint("d", n)
			if n%4 != 0 {
				soft(t, s.AddDevice(ctx, store.Device{ID: id}, "eve", Start))
				return
			}
			// The device is written before the policy is found missing.
			if err := s.AddDevice(ctx, store.Device{ID: id, Policies: []string{"none"}}, "eve", Start); err == nil || !strings.Contains(err.Error(), "none") {
				t.Errorf("%s: %v", id, err)
			}
		})
	}
	group.Wait()
	all, err := s.Devices(ctx, store.Filter{}, "", 1000, Start)
	must(t, err)
	head, err := s.VerifyChain(ctx, store.Head{})
	must(t, err)
	if len(all) != 150 || head.Seq != 150 {
		t.Errorf("%d devices and %d events, want 150", len(all), head.Seq)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	want(t, s.AddDevice(gone, store.Device{ID: "late"}, "eve", Start), context.Canceled)
	_, err = s.Device(ctx, "late", Start)
	want(t, err, store.ErrNotFound)
}

func testClosed(t *testing.T, url string) {
	s := open(t, url)
	var group sync.WaitGroup
	for n := range 50 {
		group.Go(func() {
			err := s.AddDevice(t.Context(), store.Device{ID: fmt.Sprint("d", n)}, "eve", Start)
			if err != nil {
				want(t, err, store.ErrClosed)
			}
		})
	}
	must(t, s.Close())
	group.Wait()
	want(t, s.Note(t.Context(), store.Event{At: time.Time{}, Kind: "x", Detail: "{}"}), store.ErrClosed)
}
