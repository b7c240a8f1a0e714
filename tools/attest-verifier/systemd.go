package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/meta-attest/meta-attest/tools/internal/store"
)

// notify tells systemd about the state of the service (sd_notify(3)); without systemd it
// does nothing.
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}

// watch feeds the watchdog of systemd for as long as the database answers.
func watch(ctx context.Context, st *store.Store, log *slog.Logger) error {
	text := os.Getenv("WATCHDOG_USEC")
	if text == "" {
		return nil
	}
	usec, err := strconv.ParseInt(text, 10, 64)
	if err != nil || usec <= 0 {
		return fmt.Errorf("WATCHDOG_USEC: %.20q is not a number of microseconds", text)
	}
	period := time.Duration(usec) * time.Microsecond / 3
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		ping, cancel := context.WithTimeout(ctx, period)
		err := st.Ping(ping)
		cancel()
		if err == nil {
			err = notify("WATCHDOG=1")
		}
		if err != nil && ctx.Err() == nil {
			log.Error("watchdog", "error", err)
		}
	}
}
