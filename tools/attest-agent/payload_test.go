//go:build !nopull

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
	"github.com/meta-attest/meta-attest/tools/internal/payload"
)

// TestPayloadStops: a program of a payload that does not end keeps nobody from erasing it,
// in less than the time after which systemd would kill the agent.
func TestPayloadStops(t *testing.T) {
	t.Parallel()
	m, p, c, flags := newPolled(t, "--secrets-execute", "1")
	secrets := flags[slices.Index(flags, "--secrets-dir")+1]
	sent := &payload.Payload{Files: []payload.File{{Name: payloadRun, Mode: 0o700, Data: []byte("#!/bin/sh\ntouch ../begun\nexec sleep 1000\n")}}}
	zip, err := sent.Zip()
	if err != nil {
		t.Fatal(err)
	}
	k := bytes.Repeat([]byte{1}, evidence.ShareSize)
	u, v := evidence.SplitKey(k)
	key := c.shareKey()
	c.want(200, "POST", "/v2.6/keys/ukey", evidence.UShare{AuthTag: evidence.KeyTag(k, m.state().ID), Share: c.seal(key, u), Payload: sealed(t, k, string(zip))})
	body, err := json.Marshal(evidence.VShare{Share: c.seal(key, v)})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		// Who answers may end before the answer.
		if res, err := c.client().Post("https://"+c.listen+"/v2.6/keys/vkey", "application/json", bytes.NewReader(body)); err == nil {
			res.Body.Close()
		}
	}()
	until(t, "the program", func() bool {
		_, err := os.Stat(filepath.Join(secrets, "begun"))
		return err == nil
	})
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() }) // TimeoutStopSec
	defer stop.Stop()
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("it did not end by itself: %v", err)
	}
	if left, err := os.ReadDir(secrets); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
