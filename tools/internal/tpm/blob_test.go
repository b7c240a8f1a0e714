package tpm

import (
	"bytes"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// FuzzBlob: a saved key that is taken is written as it was, and its attributes are ours.
func FuzzBlob(f *testing.F) {
	for _, s := range akSchemes() {
		f.Add(append(tpm2.Marshal(tpm2.New2B(s.public)), 0, 2, 1, 2))
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		public, private, err := parseBlob(blob)
		if err != nil {
			return
		}
		if got := append(tpm2.Marshal(public), tpm2.Marshal(private)...); !bytes.Equal(got, blob) {
			t.Errorf("%x became %x", blob, got)
		}
		if checkAK(public) != nil {
			return
		}
		area, err := public.Contents()
		if err != nil {
			t.Fatal(err)
		}
		if a := area.ObjectAttributes; !a.Restricted || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.SignEncrypt || a.Decrypt {
			t.Errorf("attributes %+v", a)
		}
	})
}
