package appraise

import "testing"

// TestPart: a part of a list is never trusted, and names what does not fit.
func TestPart(t *testing.T) {
	ref := compile(t, `required = ["/usr/bin/ls"]`, one)
	d := newDevice(t)
	d.file("/usr/bin/ls", content("ls"))
	if v := Part(d.attest(0), ref); told(v) != "trusted 1.0" {
		t.Error(told(v))
	}
	d.file("/usr/bin/bash", content("bash 1"))
	if v := Part(d.attest(-1), ref); told(v) != "unverified 1.0; need_whole" || v.Counts.Entries != 1 {
		t.Errorf("%s, %+v", told(v), v.Counts)
	}
	d.file("/tmp/evil", content("evil"))
	c := d.attest(-1)
	v := Part(c, ref)
	if told(v) != "untrusted 1.0; unknown_file 3 /tmp/evil; need_whole" {
		t.Errorf("%s, %+v", told(v), v.Reasons)
	}
	if v := Part(c, nil); told(v) != "unverified ; no_policy" {
		t.Error(told(v))
	}
	if v := Part(nil, ref); told(v) != "unverified ; no_claims" {
		t.Error(told(v))
	}
}
