package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/xattr"

	"github.com/meta-attest/meta-attest/tools/internal/keys"
)

// part is one line of the floor.
type part struct {
	name string
	cost cost
	note string
}

// floor measures the three things that signing a tree cannot do without, each alone and
// on all processors.
func floor(root, key string, files []string) ([]part, error) {
	k, err := keys.Open(context.Background(), key+".key", keys.Options{})
	if err != nil {
		return nil, err
	}
	defer k.Close()
	digest := sha256.Sum256(nil)
	label, err := k.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	label = append([]byte{3, 2, 4, 0, 0, 0, 0, byte(len(label) >> 8), byte(len(label))}, label...)
	parts := []part{{name: "  floor: read and hash"}, {name: "  floor: sign"}, {name: "  floor: set the attribute"}}
	for i, work := range []func(file string) error{
		hashFile,
		func(string) error { _, err := k.Sign(nil, digest[:], crypto.SHA256); return err },
		func(file string) error { return xattr.LSet(file, "security.ima", label) },
	} {
		if parts[i].cost, err = parallel(files, work); err != nil {
			return nil, err
		}
	}
	sum := part{name: "floor: the sum", note: "wall is CPU over processors"}
	for _, p := range parts {
		sum.cost.cpu += p.cost.cpu
	}
	sum.cost.wall = sum.cost.cpu / time.Duration(runtime.NumCPU())
	return append(parts, sum), nil
}

func hashFile(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, *buf)
	return err
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// parallel measures work on all files.
func parallel(files []string, work func(string) error) (cost, error) {
	syscall.Sync()
	before := cpu()
	start := time.Now()
	var wg sync.WaitGroup
	next := make(chan string, 256)
	errs := make(chan error, runtime.NumCPU())
	for range runtime.NumCPU() {
		wg.Go(func() {
			var first error
			for file := range next {
				if err := work(file); err != nil && first == nil {
					first = fmt.Errorf("%s: %w", file, err)
				}
			}
			errs <- first
		})
	}
	for _, file := range files {
		next <- file
	}
	close(next)
	wg.Wait()
	c := cost{wall: time.Since(start), cpu: cpu() - before}
	for range runtime.NumCPU() {
		if err := <-errs; err != nil {
			return c, err
		}
	}
	return c, nil
}

// cpu is what this process has used so far.
func cpu() time.Duration {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
