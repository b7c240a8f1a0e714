package tpm

import (
	"bytes"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

func TestCoordinate(t *testing.T) {
	for n := range 33 {
		in := bytes.Repeat([]byte{7}, n)
		got, err := coordinate(tpm2.TPM2BECCParameter{Buffer: in})
		if err != nil || len(got) != 32 || !bytes.HasSuffix(got, in) || len(bytes.TrimLeft(got, "\x00")) != n {
			t.Errorf("%d bytes: %x, %v", n, got, err)
		}
	}
	if _, err := coordinate(tpm2.TPM2BECCParameter{Buffer: make([]byte, 33)}); err == nil {
		t.Error("33 bytes: taken")
	}
}
