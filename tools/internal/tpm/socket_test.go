package tpm_test

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/tpm"
	"github.com/meta-attest/meta-attest/tools/internal/tpm/tpmtest"
)

// listen serves one TCP connection.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		serve(c)
	}()
	return "tcp:" + l.Addr().String()
}

// TestAnswersInPieces: a socket delivers an answer byte by byte if it likes.
func TestAnswersInPieces(t *testing.T) {
	behind := tpmtest.Start(t).Address
	address := listen(t, func(c net.Conn) {
		u, err := net.Dial("unix", strings.TrimPrefix(behind, "unix:"))
		if err != nil {
			return
		}
		defer func() { _ = u.Close() }()
		go func() { _, _ = io.Copy(u, c) }()
		for b := make([]byte, 1); ; {
			if _, err := u.Read(b); err != nil {
				return
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	dev, err := tpm.Open(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	if info, err := dev.Info(); err != nil || info.Manufacturer != "IBM" {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestLyingAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":           "",
		"half a header":     "\x80\x01\x00",
		"size of 4 GiB":     "\x80\x01\xff\xff\xff\xff\x00\x00\x00\x00",
		"size of 0":         "\x80\x01\x00\x00\x00\x00\x00\x00\x00\x00",
		"less than it says": "\x80\x01\x00\x00\x00\x20\x00\x00\x00\x00",
		"more than it says": "\x80\x01\x00\x00\x00\x0a\x00\x00\x00\x00xxxx",
	} {
		dev, err := tpm.Open(listen(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = c.Write([]byte(answer))
			_ = c.(*net.TCPConn).CloseWrite()
			if n, _ := c.Read(make([]byte, 4096)); n > 0 {
				t.Errorf("%s: a command comes after it, whose answer this could be", name)
			}
		}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dev.Clock(); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := dev.Clock(); err == nil {
			t.Errorf("%s: and then another", name)
		}
		_ = dev.Close()
	}
}
