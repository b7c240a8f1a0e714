// Attest-bench measures attest beside its peer, evmctl, and beside the floor: what
// hashing, signing and labelling cost alone. It prints a table and judges nothing.
//
//	attest-bench sign [CORPUS...]    needs root, evmctl and openssl
//	attest-bench memory              a tree of a million files
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	err := errors.New("usage: attest-bench {sign [real] [small] [large] | memory}")
	switch {
	case len(os.Args) > 1 && os.Args[1] == "sign":
		err = sign(os.Args[2:])
	case len(os.Args) == 2 && os.Args[1] == "memory":
		err = memory()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attest-bench: error:", err)
		os.Exit(1)
	}
}

// cost is what a process, or a part of this one, took.
type cost struct {
	wall, cpu time.Duration
	rss       int64 // bytes, at the peak; 0 when not measured
}

func (c cost) scaled(n, of int) cost {
	f := float64(of) / float64(n)
	return cost{time.Duration(float64(c.wall) * f), time.Duration(float64(c.cpu) * f), c.rss}
}

// run measures a program and the processes that it starts. time(1) stands in between
// because a process inherits the peak memory of the one that forked it.
func run(args ...string) (cost, error) {
	peak, err := os.CreateTemp("", "attest-bench")
	if err != nil {
		return cost{}, err
	}
	defer os.Remove(peak.Name())
	defer peak.Close()
	cmd := exec.Command("time", append([]string{"-q", "-f", "%M", "-o", peak.Name()}, args...)...)
	syscall.Sync()
	start := time.Now()
	out, err := cmd.CombinedOutput()
	wall := time.Since(start)
	if err != nil {
		return cost{}, fmt.Errorf("%s: %w\n%.2000s", strings.Join(args, " "), err, out)
	}
	c := cost{wall: wall, cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	if _, err := fmt.Fscan(peak, &c.rss); err != nil {
		return cost{}, fmt.Errorf("time: %w", err)
	}
	c.rss <<= 10
	return c, nil
}

// row prints one line of the table.
func row(name string, c, attest cost, note string) {
	rss, ratio := "-", "-"
	if c.rss > 0 {
		rss = fmt.Sprintf("%.1f", float64(c.rss)/(1<<20))
	}
	if attest.wall > 0 {
		ratio = fmt.Sprintf("%.2f", c.wall.Seconds()/attest.wall.Seconds())
	}
	fmt.Printf("  %-34s %9.3f %9.3f %9s %9s  %s\n", name, c.wall.Seconds(), c.cpu.Seconds(), rss, ratio, note)
}

// setUp builds the program and makes the keys.
func setUp() (program, work string, err error) {
	work, err = os.MkdirTemp("", "attest-bench")
	if err != nil {
		return "", "", err
	}
	program = filepath.Join(work, "attest")
	if _, err = run("go", "build", "-o", program, "./tools/attest"); err == nil {
		err = makeKeys(work)
	}
	if err != nil {
		os.RemoveAll(work)
	}
	return program, work, err
}

// memory measures what a million files take, with and without a manifest.
func memory() error {
	program, work, err := setUp()
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	root, err := corpus{"million", func(dir string) error { return random(dir, 1e6, 2) }}.tree()
	if err != nil {
		return err
	}
	key := filepath.Join(work, "p256")
	manifest := filepath.Join(work, "manifest")
	fmt.Printf("a million files, p256\n  %-34s %9s %9s %9s\n", "", "wall s", "CPU s", "peak MiB")
	for _, r := range []struct {
		name string
		args []string
	}{
		{"attest sign", []string{"sign", root, "--key", key + ".key", "--cert", key + ".crt"}},
		{"attest sign --evm --manifest", []string{"sign", root, "--key", key + ".key", "--cert", key + ".crt", "--evm", "--target", "arm", "--manifest", manifest}},
		{"attest verify --manifest", []string{"verify", root, "--cert", key + ".crt", "--all", "--evm", "--target", "arm", "--manifest", manifest}},
	} {
		c, err := run(append([]string{program}, r.args...)...)
		if err != nil {
			return err
		}
		row(r.name, c, cost{}, "")
	}
	return nil
}

// sign prints a table for each corpus and kind of key.
func sign(names []string) error {
	program, work, err := setUp()
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	for _, c := range corpora {
		if len(names) > 0 && !slices.Contains(names, c.name) {
			continue
		}
		root, err := c.tree()
		if err != nil {
			return fmt.Errorf("corpus %s: %w", c.name, err)
		}
		files, bytes, err := strip(root)
		if err != nil {
			return err
		}
		for _, key := range []string{"p256", "rsa2048"} {
			fmt.Printf("%s: %d files, %.1f MB, %s\n", c.name, len(files), float64(bytes)/1e6, key)
			fmt.Printf("  %-34s %9s %9s %9s %9s\n", "", "wall s", "CPU s", "peak MiB", "x attest")
			if err := compare(program, root, filepath.Join(work, key), files); err != nil {
				return err
			}
		}
	}
	return nil
}

// rounds is how often attest is measured; the fastest counts, for all alike one would
// wait too long for evmctl.
const rounds = 3

// compare measures one tree with one key.
func compare(program, root, key string, files []string) error {
	var best cost
	for range rounds {
		if _, _, err := strip(root); err != nil {
			return err
		}
		c, err := run(program, "sign", root, "--key", key+".key", "--cert", key+".crt")
		if err != nil {
			return err
		}
		if best.wall == 0 || c.wall < best.wall {
			best = c
		}
	}
	row("attest sign", best, best, "")
	again, err := run(program, "sign", root, "--key", key+".key", "--cert", key+".crt")
	if err != nil {
		return err
	}
	row("attest sign, nothing to do", again, best, "")
	verify, err := run(program, "verify", root, "--cert", key+".crt", "--all")
	if err != nil {
		return err
	}
	row("attest verify", verify, best, "")
	floors, err := floor(root, key, files)
	if err != nil {
		return err
	}
	for _, f := range floors {
		row(f.name, f.cost, best, f.note)
	}
	if _, _, err := strip(root); err != nil {
		return err
	}
	c, err := run("evmctl", "ima_sign", "-r", "-a", "sha256", "-k", key+".key", root)
	if err != nil {
		return err
	}
	row("evmctl ima_sign -r", c, best, "")
	return layerWay(root, key, files, best)
}

// sample is how many files the layer's way is measured on, where there are more: it
// starts a process for each.
const sample = 1000

// layerWay is find | xargs as meta-integrity's class would have to call it for evmctl to
// sign each file.
func layerWay(root, key string, files []string, best cost) error {
	n, note := len(files), ""
	if n > sample {
		note = fmt.Sprintf("scaled from %d files", sample)
		step := n / sample
		var some []string
		for i := 0; len(some) < sample; i += step {
			some = append(some, files[i])
		}
		files = some
	}
	list := filepath.Join(filepath.Dir(key), "list")
	if err := os.WriteFile(list, []byte(strings.Join(files, "\x00")), 0o600); err != nil {
		return err
	}
	if _, _, err := strip(root); err != nil {
		return err
	}
	c, err := run("xargs", "-0", "-n1", "-a", list, "evmctl", "ima_sign", "-a", "sha256", "-k", key+".key")
	if err != nil {
		return err
	}
	row("find | xargs -n1 evmctl ima_sign", c.scaled(len(files), n), best, note)
	return nil
}

// makeKeys makes a self-signed pair of each kind.
func makeKeys(dir string) error {
	for name, args := range map[string][]string{
		"p256":    {"ec", "-pkeyopt", "ec_paramgen_curve:P-256"},
		"rsa2048": {"rsa:2048"},
	} {
		file := filepath.Join(dir, name)
		all := append([]string{"openssl", "req", "-x509", "-nodes", "-keyout", file + ".key", "-out", file + ".crt",
			"-days", "30", "-subj", "/CN=bench", "-addext", "keyUsage=critical,digitalSignature", "-newkey"}, args...)
		if _, err := run(all...); err != nil {
			return err
		}
	}
	return nil
}
