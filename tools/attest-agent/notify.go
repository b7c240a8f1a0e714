package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// hungAfter is without a step of the main loop taken for hung: longer than the slowest TPM
// takes for a key, and than all requests of one attestation may take.
const hungAfter = 10 * time.Minute

// notifier tells systemd how the agent is (sd_notify(3)); without systemd it does nothing.
type notifier struct {
	conn  *net.UnixConn
	start time.Time
	last  atomic.Int64 // when the main loop made a step, as time since start
	done  chan struct{}
}

// alive notes a step of the main loop.
func (n *notifier) alive() { n.last.Store(int64(time.Since(n.start))) }

func newNotifier() (*notifier, error) {
	n := &notifier{start: time.Now(), done: make(chan struct{})}
	n.alive()
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return n, nil
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	var err error
	if n.conn, err = net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"}); err != nil {
		return nil, fmt.Errorf("notify systemd: %w", err)
	}
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if pid := os.Getenv("WATCHDOG_PID"); err == nil && usec > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		go n.watch(time.Duration(usec) * time.Microsecond / 2)
	}
	return n, nil
}

// watch feeds the watchdog as long as the main loop goes on.
func (n *notifier) watch(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		if time.Since(n.start)-time.Duration(n.last.Load()) < hungAfter {
			n.send("WATCHDOG=1")
		}
		select {
		case <-t.C:
		case <-n.done:
			return
		}
	}
}

// maxSend is for how long a notice may wait for a service manager that does not listen.
const maxSend = 100 * time.Millisecond

// send is lost when nobody listens: what it says is also in the state.
func (n *notifier) send(text string) {
	if n.conn != nil {
		_ = n.conn.SetWriteDeadline(time.Now().Add(maxSend))
		_, _ = n.conn.Write([]byte(text))
	}
}

func (n *notifier) close() {
	close(n.done)
	if n.conn != nil {
		n.conn.Close()
	}
}
