package evidence

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPullGolden: the texts that rust-keylime's own tests have for these messages
// (quote.rs, version.rs, keys_handler.rs, agent_handler.rs) are read, and written as they were.
func TestPullGolden(t *testing.T) {
	share := strings.Repeat("A", 342) + "=="
	tag := strings.Repeat("0a", 48)
	golden(t, DecodeAnswer[QuoteAnswer], `{"code":200,"status":"Success","results":{"quote":"rAAAA:BBBB:CCCC","hash_alg":"SHA256","enc_alg":"AES","sign_alg":"RSASSA-PSS","pubkey":"example_pubkey","ima_measurement_list":"example_ima_ml","ima_measurement_list_entry":12345}}`)
	golden(t, DecodeAnswer[AgentVersions], `{"code":200,"status":"Success","results":{"supported_version":"2.6","supported_versions":["2.1","2.2","2.3","2.4","2.5","2.6"]}}`)
	golden(t, DecodeAnswer[AgentVersions], `{"code":200,"status":"Success","results":{"supported_version":"2.2"}}`)
	golden(t, DecodeAnswer[AgentInfo], `{"code":200,"status":"Success","results":{"agent_uuid":"DEADBEEF","tpm_hash_alg":"sha256","tpm_enc_alg":"rsa2048","tpm_sign_alg":"rsassa","ak_handle":2147483648}}`)
	golden(t, DecodeAnswer[KeyProof], `{"code":200,"status":"Success","results":{"hmac":"`+tag+`"}}`)
	golden(t, DecodeBody[UShare], `{"auth_tag":"`+tag+`","encrypted_key":"`+share+`"}`)
	golden(t, DecodeBody[UShare], `{"auth_tag":"`+tag+`","encrypted_key":"`+share+`","payload":"QUJDREVGR0hJSktMTU5PUAABAg=="}`)
	golden(t, DecodeBody[VShare], `{"encrypted_key":"`+share+`"}`)
	golden(t, DecodeBody[SignedRevocation], `{"msg":"{\n    \"hello\": \"there\"\n}\n","signature":"AAAA"}`)
	if _, err := DecodeAnswer[Empty](strings.NewReader(`{"code":200,"status":"Success","results":null}`)); err != nil {
		t.Errorf("the answer to a share: %v", err)
	}
}

func golden[T any](t *testing.T, decode func(io.Reader) (*T, error), text string) {
	t.Helper()
	m, err := decode(strings.NewReader(text))
	if err != nil {
		t.Error(err)
		return
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(b); got != text {
		t.Errorf("%s became %s", text, got)
	}
}

func TestPullRefuses(t *testing.T) {
	share := strings.Repeat("A", 342) + "=="
	tag := strings.Repeat("0a", 48)
	malformed(t, DecodeBody[UShare], `{"auth_tag":"00","encrypted_key":"`+share+`"}`)
	malformed(t, DecodeBody[UShare], `{"auth_tag":"`+strings.Repeat("x", 96)+`","encrypted_key":"`+share+`"}`)
	malformed(t, DecodeBody[UShare], `{"auth_tag":"`+tag+`","encrypted_key":"AAAA"}`)
	malformed(t, DecodeBody[UShare], `{"auth_tag":"`+tag+`"}`)
	malformed(t, DecodeBody[UShare], `{"auth_tag":"`+tag+`","encrypted_key":"`+share+`","payload":"`+strings.Repeat("A", (MaxPayload+64)/3*4)+`"}`)
	malformed(t, DecodeBody[UShare], `{"auth_tag":"`+tag+`","encrypted_key":"`+share+`","x":"`+strings.Repeat("A", maxShares)+`"}`)
	malformed(t, DecodeBody[VShare], `{}`)
	malformed(t, DecodeBody[SignedRevocation], `{"msg":"{}","signature":""}`) // of a Keylime without a revocation key
	malformed(t, DecodeBody[Revocation], `{"type":"revocation"}`)
	malformed(t, DecodeAnswer[KeyAnswer], `{"code":200,"status":"Success","results":{"pubkey":"none"}}`)
	malformed(t, DecodeAnswer[AgentVersions], `{"code":200,"status":"Success","results":{}}`)
}

func malformed[T any](t *testing.T, decode func(io.Reader) (*T, error), text string) {
	t.Helper()
	if m, err := decode(strings.NewReader(text)); err == nil || m != nil || CodeOf(err) != CodeMalformed {
		t.Errorf("%.80s: %v", text, err)
	}
}

func TestParseQuoteRequest(t *testing.T) {
	nonce := "1234567890ABCDEFHIJ" // of rust-keylime's tests
	for query, want := range map[string]QuoteRequest{
		"nonce=" + nonce + "&mask=0x408000&partial=0":                      {nonce, []int{15, 22}, true, 0},
		"nonce=" + nonce + "&mask=0x0&partial=1&ima_ml_entry=2147483647":   {nonce, nil, false, 2147483647},
		"nonce=" + nonce + "&mask=408000&partial=1&ima_ml_entry=7&later=x": {nonce, []int{15, 22}, false, 7},
		"mask=0xffffff&nonce=" + strings.Repeat("a", 64) + "&partial=1":    {strings.Repeat("a", 64), seq(24), false, 0},
		"nonce=" + nonce + "&mask=0x400&partial=0&ima_ml_entry=0":          {nonce, []int{10}, true, 0},
	} {
		got, err := ParseQuoteRequest(query)
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("%s: %s", query, diff)
		}
		if again, err := ParseQuoteRequest(got.Query()); err != nil || !cmp.Equal(got, again) {
			t.Errorf("%s became %s: %v", query, got.Query(), err)
		}
	}
	for _, query := range []string{
		"", "nonce=" + nonce, "nonce=" + nonce + "&mask=0x400", "mask=0x400&partial=0",
		"nonce=&mask=0x400&partial=0", "nonce=short&mask=0x400&partial=0",
		"nonce=" + strings.Repeat("a", 65) + "&mask=0x400&partial=0",
		"nonce=1234567890ABCDEF%C3%A4&mask=0x400&partial=0", "nonce=1234567890ABCDEFä&mask=0x400&partial=0",
		"nonce=1234567890ABCDEF+&mask=0x400&partial=0",
		"nonce=" + nonce + "&nonce=" + nonce + "&mask=0x400&partial=0",
		"nonce=" + nonce + "&mask=0x1000000&partial=0", "nonce=" + nonce + "&mask=-1&partial=0", "nonce=" + nonce + "&mask=&partial=0",
		"nonce=" + nonce + "&mask=0x400&partial=2", "nonce=" + nonce + "&mask=0x400&partial=",
		"nonce=" + nonce + "&mask=0x400&partial=0&ima_ml_entry=-1", "nonce=" + nonce + "&mask=0x400&partial=0&ima_ml_entry=2147483648",
		"nonce=" + nonce + "&mask=0x400&partial=0&x=" + strings.Repeat("a", 1024),
	} {
		if q, err := ParseQuoteRequest(query); err == nil || q != nil || CodeOf(err) != CodeMalformed {
			t.Errorf("%s is taken", query)
		}
	}
	if got, err := ParseNonce("challenge="+nonce, "challenge"); err != nil || got != nonce {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ParseNonce("challenge="+nonce, "nonce"); err == nil {
		t.Error("a challenge is a nonce")
	}
}

func seq(n int) []int {
	var s []int
	for i := range n {
		s = append(s, i)
	}
	return s
}

func TestPullVersions(t *testing.T) {
	for _, c := range []struct {
		v    AgentVersions
		want string
	}{
		{AgentVersions{"2.6", PullVersions()}, "2.6"},
		{AgentVersions{"2.2", nil}, "2.2"},
		{AgentVersions{"3.1", []string{"2.3", "2.1", "3.1"}}, "2.3"},
		{AgentVersions{"1.0", []string{"1.0"}}, ""},
	} {
		if got := c.v.Best(); got != c.want {
			t.Errorf("%v: %q, not %q", c.v, got, c.want)
		}
	}
	ak := newDevice(t, "ecdsa").ak.Key()
	if a, b := Algorithm(ak, "2.4"), Algorithm(ak, "2.5"); a != "ecc" || b != "ecc256" {
		t.Errorf("%q and %q", a, b)
	}
	ak = newDevice(t, "rsassa").ak.Key()
	if a, b := Algorithm(ak, "2.1"), Algorithm(ak, "2.6"); a != "rsa" || b != "rsa2048" {
		t.Errorf("%q and %q", a, b)
	}
}

type pullVectors struct {
	Private    string
	Pubkey     string
	UUID       string
	UKey       UShare
	VKey       VShare
	Challenge  string
	HMAC       string
	Revocation SignedRevocation
}

func readVectors[T any](t *testing.T, path string) T {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestPullKeys: what Keylime's tenant and verifier send is opened.
func TestPullKeys(t *testing.T) {
	v := readVectors[pullVectors](t, "testdata/pull/keylime.json")
	block, _ := pem.Decode([]byte(v.Private))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := FormatShareKey(&key.PublicKey); err != nil || text != v.Pubkey {
		t.Errorf("the key is %q, %v", text, err)
	}
	shares := [2][]byte{}
	for i, sealed := range [][]byte{v.UKey.Share, v.VKey.Share} {
		if shares[i], err = OpenShare(key, sealed); err != nil {
			t.Fatal(err)
		}
	}
	k := JoinShares(shares[0], shares[1])
	if KeyTag(k, v.UUID) != v.UKey.AuthTag || !(KeyProof{v.HMAC}).Matches(k, v.Challenge) || (KeyProof{v.HMAC}).Matches(k, v.Challenge+"x") {
		t.Error("the tags differ")
	}
	payload, err := OpenPayload(k, v.UKey.Payload)
	if err != nil || string(payload) != "a payload" {
		t.Errorf("%q, %v", payload, err)
	}
	for i := range v.UKey.Payload {
		bad := slices.Clone(v.UKey.Payload)
		bad[i] ^= 1
		if p, err := OpenPayload(k, bad); err == nil || p != nil {
			t.Fatalf("byte %d may be changed", i)
		}
	}
	for _, bad := range [][]byte{nil, make([]byte, gcmOverhead-1), make([]byte, MaxPayload+gcmOverhead+1)} {
		if p, err := OpenPayload(k, bad); CodeOf(err) != CodeMalformed || p != nil {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := OpenShare(other, v.VKey.Share); CodeOf(err) != CodeKey || s != nil {
		t.Errorf("another's share: %v", err)
	}
	for _, size := range []int{0, 16, 31, 33} { // 16: AES-128, which nobody sends
		sealed, err := SealShare(v.Pubkey, make([]byte, size))
		if err != nil {
			t.Fatal(err)
		}
		if s, err := OpenShare(key, sealed); CodeOf(err) != CodeKey || s != nil {
			t.Errorf("a share of %d bytes: %v", size, err)
		}
	}
}

// TestOurKeys: the way of a key of ours.
func TestOurKeys(t *testing.T) {
	k := bytes.Repeat([]byte{7}, ShareSize)
	u, v := SplitKey(k)
	if bytes.Equal(u, k) || bytes.Equal(v, k) || !bytes.Equal(JoinShares(u, v), k) {
		t.Error("the shares do not make the key")
	}
	sealed, err := SealPayload(k, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := OpenPayload(k, sealed); err != nil || string(p) != "x" {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := SealPayload(k, make([]byte, MaxPayload+1)); err == nil {
		t.Error("a payload too large is taken")
	}
	if _, err := SealShare("-----BEGIN PUBLIC KEY-----", u); CodeOf(err) != CodeKey {
		t.Error(err)
	}
}

func TestRevocations(t *testing.T) {
	rust := readVectors[struct {
		SignedRevocation
		Certificate string
	}](t, "testdata/pull/revocation.json")
	block, _ := pem.Decode([]byte(rust.Certificate))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := rust.Verify(cert); err != nil {
		t.Error(err)
	}
	changed := rust.SignedRevocation
	changed.Message += " "
	if err := changed.Verify(cert); CodeOf(err) != CodeSignature || err == nil {
		t.Errorf("a changed message: %v", err)
	}
	v := readVectors[pullVectors](t, "testdata/pull/keylime.json")
	if err := v.Revocation.Verify(cert); CodeOf(err) != CodeSignature || err == nil {
		t.Errorf("another's signature: %v", err)
	}
	block, _ = pem.Decode([]byte(v.Private))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Revocation.Verify(&x509.Certificate{PublicKey: &key.PublicKey}); err != nil {
		t.Error(err)
	}
	r, err := DecodeBody[Revocation](strings.NewReader(v.Revocation.Message))
	if err != nil || r.ID != v.UUID || r.EventID != "ima.validation.ima-ng.not_in_allowlist" {
		t.Errorf("%+v, %v", r, err)
	}
	ours, err := SignRevocation(key, []byte(v.Revocation.Message))
	if err != nil {
		t.Fatal(err)
	}
	if err := ours.Verify(&x509.Certificate{PublicKey: &key.PublicKey}); err != nil {
		t.Error(err)
	}
}

func TestKeyPCRValue(t *testing.T) {
	// sha256(32 bytes of 0, sha256("key")), computed with Python
	const want = "0ea269a4fb424fa2a658d5fb33126d8d614e7f1fea08e09fcbcd395986ca54fe"
	got := hex.EncodeToString(KeyPCRValue(crypto.SHA256, "key"))
	if got != want {
		t.Errorf("%s, not %s", got, want)
	}
}

// FuzzPull: what peers of a polled agent send.
func FuzzPull(f *testing.F) {
	f.Add([]byte(`{"auth_tag":"` + strings.Repeat("0a", 48) + `","encrypted_key":"` + strings.Repeat("A", 342) + `=="}`))
	f.Add([]byte(`{"msg":"{\"type\":\"revocation\",\"agent_id\":\"a\",\"port\":1}","signature":"AAAA"}`))
	f.Add([]byte(`{"code":200,"status":"Success","results":{"supported_version":"2.6"}}`))
	f.Add([]byte("nonce=1234567890ABCDEFHIJ&mask=0x408000&partial=0&ima_ml_entry=3"))
	f.Fuzz(func(t *testing.T, in []byte) {
		again(t, in, DecodeBody[UShare])
		again(t, in, DecodeBody[VShare])
		again(t, in, DecodeBody[SignedRevocation])
		again(t, in, DecodeBody[Revocation])
		again(t, in, DecodeAnswer[AgentVersions])
		again(t, in, DecodeAnswer[AgentInfo])
		again(t, in, DecodeAnswer[KeyAnswer])
		again(t, in, DecodeAnswer[KeyProof])
		again(t, in, DecodeAnswer[QuoteAnswer])
		q, err := ParseQuoteRequest(string(in))
		if (q == nil) != (err != nil) {
			t.Errorf("%v with %v", q, err)
		}
		if q != nil {
			if back, err := ParseQuoteRequest(q.Query()); err != nil || !cmp.Equal(q, back) {
				t.Errorf("%s became %s: %v", in, q.Query(), err)
			}
		}
		if n, err := ParseNonce(string(in), "nonce"); err == nil && (len(n) < MinNonce || strings.ContainsFunc(n, notAlphanumeric)) {
			t.Errorf("nonce %q", n)
		}
	})
}

func TestParseRevocationKey(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{"RSA PRIVATE KEY": x509.MarshalPKCS1PrivateKey(key), "PRIVATE KEY": pkcs8} {
		if k, err := ParseRevocationKey(pem.EncodeToMemory(&pem.Block{Type: name, Bytes: der})); err != nil || !k.Equal(key) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"", "key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8[1:]}))} {
		if _, err := ParseRevocationKey([]byte(bad)); err == nil {
			t.Errorf("%.40q was read", bad)
		}
	}
}
