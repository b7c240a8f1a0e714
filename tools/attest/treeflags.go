package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/meta-attest/meta-attest/tools/internal/ima"
	"github.com/meta-attest/meta-attest/tools/internal/rootfs"
)

// verityFlags are the parameters of fs-verity digests.
type verityFlags struct {
	block int
	salt  string
}

func (v *verityFlags) addFlags(f *pflag.FlagSet) {
	f.IntVar(&v.block, "verity-block-size", 4096, "block size of fs-verity in `BYTES`")
	f.StringVar(&v.salt, "verity-salt", "", "salt of fs-verity, at most 32 bytes in `HEX`")
}

// params checks the flags.
func (v *verityFlags) params(hash ima.HashAlgo) (*ima.VerityParams, error) {
	salt, err := hex.DecodeString(v.salt)
	if err != nil {
		return nil, fmt.Errorf("--verity-salt: %w", err)
	}
	p := &ima.VerityParams{Hash: hash, BlockSize: v.block, Salt: salt}
	if _, err := ima.NewVerity(*p); err != nil {
		return nil, err
	}
	return p, nil
}

// findLayout returns what EVM signatures depend on in the target's kernel.
func findLayout(ctx context.Context, tree *rootfs.Tree, target string) (ima.Layout, error) {
	if target != "" {
		return ima.ParseTarget(target)
	}
	return tree.Target(ctx)
}

// refuseInside refuses to write a result into the tree that it is about.
func refuseInside(tree *rootfs.Tree, flag, path string) error {
	if path == "" || path == "-" {
		return nil
	}
	inside, err := tree.Contains(path)
	if err == nil && inside {
		err = errors.New("lies in the tree that is signed")
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", flag, path, err)
	}
	return nil
}

// labelsDump is the kind of labels that go to a file for setfattr.
const labelsDump = "dump"

// dumpFile takes the labels. A nil *dumpFile takes none.
type dumpFile struct {
	*bufio.Writer
	tmp  *os.File // nil for standard output
	path string
}

// openDump opens the file for the labels, if the flags ask for one. It gets its name
// when it is complete.
func (o *signFlags) openDump(stdout io.Writer) (*dumpFile, error) {
	if o.labels != labelsDump {
		return nil, nil
	}
	if o.output == "-" {
		return &dumpFile{Writer: bufio.NewWriter(stdout)}, nil
	}
	if st, err := os.Lstat(o.output); err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("--output %s: is not a regular file", o.output)
	}
	tmp, err := os.OpenFile(filepath.Join(filepath.Dir(o.output), "."+filepath.Base(o.output)+".tmp"),
		os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o666)
	if err != nil {
		return nil, fmt.Errorf("--output %s: %w", o.output, err)
	}
	return &dumpFile{bufio.NewWriter(tmp), tmp, o.output}, nil
}

func (d *dumpFile) commit() error {
	if d == nil {
		return nil
	}
	if err := d.Flush(); err != nil || d.tmp == nil {
		return err
	}
	if err := errors.Join(d.tmp.Sync(), d.tmp.Close()); err != nil {
		return err
	}
	err := os.Rename(d.tmp.Name(), d.path)
	d.tmp = nil
	return err
}

// abort removes what is not complete. After commit it does nothing.
func (d *dumpFile) abort() {
	if d != nil && d.tmp != nil {
		d.tmp.Close()
		os.Remove(d.tmp.Name())
	}
}

// maxJobs bounds --jobs: each has an open file and a buffer.
const maxJobs = 512

func checkJobs(n int) error {
	if n < 0 || n > maxJobs {
		return fmt.Errorf("--jobs %d is not from 0 to %d", n, maxJobs)
	}
	return nil
}

// completeTreeFlags tells a shell the values of the flags that have few.
func completeTreeFlags(c *cobra.Command, moreLabels ...string) {
	for flag, values := range map[string][]string{
		"labels":   append([]string{rootfs.LabelsAuto, rootfs.LabelsLibc, rootfs.LabelsDirect}, moreLabels...),
		"progress": {"auto", "bar", "plain", "none"},
		"target":   ima.Targets(),
		"hash":     {ima.SHA256.String(), ima.SHA384.String(), ima.SHA512.String()},
	} {
		if c.Flags().Lookup(flag) != nil {
			c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
}
