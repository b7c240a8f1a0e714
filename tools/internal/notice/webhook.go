package notice

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Secret is the key of a webhook.
type Secret []byte

// ParseSecret reads a secret as Standard Webhooks writes it: whsec_ and base64 of 24 to 64
// random bytes.
func ParseSecret(text string) (Secret, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), "whsec_")
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, errors.New("secret of a webhook: want whsec_ and base64 of 24 to 64 random bytes")
	}
	return key, nil
}

// Sign adds the headers of Standard Webhooks 1.0 (github.com/standard-webhooks, spec,
// "Signature scheme" v1) to a request with this body. The id is the same at each attempt,
// the time is not.
func (s Secret) Sign(h http.Header, id string, at time.Time, body []byte) {
	stamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, s)
	fmt.Fprintf(mac, "%s.%s.", id, stamp)
	mac.Write(body)
	h.Set("Webhook-Id", id)
	h.Set("Webhook-Timestamp", stamp)
	h.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}
