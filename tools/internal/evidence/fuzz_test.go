package evidence

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// FuzzDecode: whatever is sent, an error leaves nothing, and what was read can be written
// and read again.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(goodSession))
	b, err := json.Marshal(NewDocument("", Collected{[]Item{{ClassCertification, TypeQuote, Data{Message: []byte("m")}}, {ClassLog, TypeIMA, NewLog(nil, FormatText, 0)}}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"code":200,"status":"Success","results":{"blob":"utzA3gAAAAEAAAAA"}}`))
	f.Add([]byte(`{"aik_tpm":"AA==","ek_tpm":"AA==","ekcert":null}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		again(t, in, Decode[SessionRequest])
		again(t, in, Decode[SessionChallenge])
		again(t, in, Decode[SessionProof])
		again(t, in, Decode[SessionResult])
		again(t, in, Decode[Capabilities])
		again(t, in, Decode[Requests])
		again(t, in, Decode[Collected])
		again(t, in, DecodeBody[Registration])
		again(t, in, DecodeBody[Activation])
		again(t, in, DecodeAnswer[Challenge])
		again(t, in, DecodeAnswer[QuoteAnswer])
		if d, err := Decode[Collected](bytes.NewReader(in)); err == nil {
			asked := Requests{}
			for _, item := range d.Data.Attributes.Collected {
				asked.Requested = append(asked.Requested, Request{Class: item.Class, Type: item.Type, Parameters: Parameters{Format: FormatText}})
			}
			if ev, err := d.Data.Attributes.Evidence(asked); (ev == nil) != (err != nil) {
				t.Errorf("%v with %v", ev, err)
			}
		}
	})
}

func again[T any](t *testing.T, in []byte, decode func(io.Reader) (*T, error)) {
	first, err := decode(bytes.NewReader(in))
	if err != nil {
		if first != nil {
			t.Errorf("%+v with %v", first, err)
		}
		return
	}
	b, err := json.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	second, err := decode(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if c, err := json.Marshal(second); err != nil || !bytes.Equal(b, c) {
		t.Errorf("%s became %s", b, c)
	}
}

// FuzzPublic: a key that is taken is written as it was.
func FuzzPublic(f *testing.F) {
	f.Add(newDevice(f, "ecdsa").ak.Public())
	f.Add(newDevice(f, "rsassa").ak.Public())
	f.Add(softEK(f))
	f.Fuzz(func(t *testing.T, in []byte) {
		ak, err := ParseAK(in)
		if (ak == nil) != (err != nil) || ak != nil && (!bytes.Equal(ak.Public(), in) || len(ak.Name()) < 34) {
			t.Errorf("%v with %v", ak, err)
		}
		ek, err := ParseEK(in)
		if (ek == nil) != (err != nil) || ek != nil && !bytes.Equal(ek.Public(), in) {
			t.Errorf("%v with %v", ek, err)
		}
		if ek != nil {
			_, _ = ek.MakeCredential(&AK{name: make([]byte, 34)}, make([]byte, 32))
		}
	})
}

// FuzzQuote: the structures that a TPM signs, and the values beside them. An attacker who
// has not the key can send all of them, so none is parsed but by this.
func FuzzQuote(f *testing.F) {
	d := newDevice(f, "ecdsa")
	want := d.expected()
	ev := d.evidence(want, 0)
	f.Add(ev.Message, ev.Signature, ev.PCRs)
	f.Fuzz(func(t *testing.T, message, signature, pcrs []byte) {
		if a, err := parseAttest(message, typeQuote); (a == nil) != (err != nil) {
			t.Errorf("%v with %v", a, err)
		}
		_, _ = parseAttest(message, typeCertify)
		if banks, values, err := parsePCRBlob(pcrs); err == nil {
			var s tpm2.TPMLPCRSelection
			for _, b := range banks {
				mask := make([]byte, maxSelect)
				for _, p := range b.pcrs {
					mask[p/8] |= 1 << (p % 8)
				}
				s.PCRSelections = append(s.PCRSelections, tpm2.TPMSPCRSelection{Hash: b.alg, PCRSelect: mask})
			}
			blob, err := AppendPCRBlob(nil, s, values)
			if err != nil {
				t.Fatal(err)
			}
			if _, again, err := parsePCRBlob(blob); err != nil || len(again) != len(values) {
				t.Errorf("%d values became %d: %v", len(values), len(again), err)
			}
		}
		if bytes.Equal(message, ev.Message) && bytes.Equal(pcrs, ev.PCRs) {
			return // ECDSA has more than one signature of a message
		}
		e := &Evidence{Message: message, Signature: signature, PCRs: pcrs, List: ev.List}
		if c, _, err := Verify(e, want, State{}); err == nil || c != nil {
			pcrsSame, _, _ := Verify(&Evidence{Message: ev.Message, Signature: ev.Signature, PCRs: pcrs, List: ev.List}, want, State{})
			if pcrsSame == nil || !bytes.Equal(message, ev.Message) {
				t.Error("evidence that no TPM signed is taken")
			}
		}
	})
}

// FuzzList: of whatever list, what is claimed leads to the quoted value.
func FuzzList(f *testing.F) {
	d := newDevice(f, "ecdsa")
	d.measure("/bin/sh")
	want := d.expected()
	ev := d.evidence(want, 0)
	recordedEvidence, _ := recorded(f)
	f.Add(ev.List, false, 0, recordedEvidence.Firmware)
	f.Add([]byte("10 00 ima-ng x\n"), true, 1, []byte{})
	f.Fuzz(func(t *testing.T, list []byte, ascii bool, offset int, firmware []byte) {
		e := *ev
		e.List, e.ListASCII, e.Offset, e.Firmware = list, ascii, offset, firmware
		x := want
		x.Firmware = len(firmware) > 0
		c, _, err := Verify(&e, x, State{})
		if (c == nil) != (err != nil) {
			t.Fatalf("%v with %v", c, err)
		}
		if c != nil && (c.Covered() != 2 || x.Firmware) {
			t.Errorf("covered %d of a list that was never measured", c.Covered())
		}
	})
}

func FuzzCertificates(f *testing.F) {
	ek, err := ParseEK(softEK(f))
	if err != nil {
		f.Fatal(err)
	}
	store := &CAStore{}
	f.Add([]byte{0x10, 0x01, 0x00, 0, 4, 0x10, 0x02, 0x30, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		ders, err := CutCertificates(in)
		if err != nil && ders != nil {
			t.Errorf("%d certificates with %v", len(ders), err)
		}
		for _, der := range ders {
			if !bytes.Contains(in, der) {
				t.Error("a certificate that was not sent")
			}
		}
		for _, s := range []string{string(in), base64.StdEncoding.EncodeToString(in)} {
			if c, err := store.Verify(s, ek, time.Now()); err == nil || c != nil {
				t.Error("an empty store trusts somebody")
			}
		}
	})
}
