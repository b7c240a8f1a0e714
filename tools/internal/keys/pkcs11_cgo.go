//go:build cgo

package keys

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// maxSessions bounds how many signatures a token makes at once. One session is kept by crypto11.
const maxSessions = 33

// moduleMu keeps C_Initialize and C_Finalize of findSlot and of crypto11 apart: a module is
// initialised for the whole process.
var moduleMu sync.Mutex

// openPKCS11 opens a key of a token, by a URI that parseTokenURI reads.
func openPKCS11(ctx context.Context, uri string, o Options) (*Key, error) {
	shown := withoutPIN(uri)
	t, err := parseTokenURI(uri)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", shown, err)
	}
	session, err := t.login(shown, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", shown, err)
	}
	pair, err := t.find(session)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", shown, err), session.Close())
	}
	pub := pair.Public()
	key := &Key{URI: shown, Remote: true, Deterministic: isRSA(pub), close: session.Close}
	key.Signer = newRemote(ctx, shown, pub, func(_ context.Context, digest []byte, hash crypto.Hash) ([]byte, error) {
		return pair.Sign(nil, leftmost(pub, digest), hash)
	})
	if t.hasValue {
		key.Warnings = []string{shown + ": the PIN stands in the URI, where ps shows it; use pin-source=file:/path"}
	}
	return key, nil
}

// leftmost cuts a digest to the length of the curve's order, as FIPS 186-5 section 6.4.1 wants.
// Not every token does so itself, and the orders of P-256 and P-384 are whole bytes.
func leftmost(pub crypto.PublicKey, digest []byte) []byte {
	if k, ok := pub.(*ecdsa.PublicKey); ok {
		return digest[:min(len(digest), (k.Params().N.BitLen()+7)/8)]
	}
	return digest
}

// login opens the token and logs in if it wants that.
func (t *tokenURI) login(uri string, o Options) (*crypto11.Context, error) {
	moduleMu.Lock()
	defer moduleMu.Unlock()
	slot, flags, err := t.findSlot()
	if err != nil {
		return nil, err
	}
	config := &crypto11.Config{Path: t.module, SlotNumber: &slot, MaxSessions: maxSessions}
	if flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
		config.LoginNotSupported = true
	} else if config.Pin, err = t.pin(uri, o); err != nil {
		return nil, err
	}
	session, err := crypto11.Configure(config)
	var code pkcs11.Error
	if errors.As(err, &code) && (code == pkcs11.CKR_PIN_INCORRECT || code == pkcs11.CKR_PIN_LEN_RANGE || code == pkcs11.CKR_PIN_INVALID) {
		return nil, fmt.Errorf("log in to token: %w", ErrPassphrase)
	}
	if err != nil {
		return nil, fmt.Errorf("log in to token: %w", err)
	}
	return session, nil
}

// findSlot returns the slot of the only token that the URI describes. crypto11 can look for
// one attribute, and takes the first of two tokens that have it.
func (t *tokenURI) findSlot() (slot int, flags uint, err error) {
	module := pkcs11.New(t.module)
	if module == nil {
		return 0, 0, fmt.Errorf("load PKCS#11 module %s: not a loadable module", t.module)
	}
	defer module.Destroy()
	switch err := module.Initialize(); {
	case err == nil:
		defer module.Finalize()
	case !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)): // by another Key
		return 0, 0, fmt.Errorf("initialise PKCS#11 module %s: %w", t.module, err)
	}
	slots, err := module.GetSlotList(true)
	if err != nil {
		return 0, 0, fmt.Errorf("list tokens: %w", err)
	}
	found := 0
	for _, id := range slots {
		info, err := module.GetTokenInfo(id)
		if err != nil {
			return 0, 0, fmt.Errorf("read token in slot %d: %w", id, err)
		}
		if t.describes(id, &info) {
			slot, flags = int(id), info.Flags
			found++
		}
	}
	switch found {
	case 1:
		return slot, flags, nil
	case 0:
		return 0, 0, fmt.Errorf("no such token among the %d of %s", len(slots), t.module)
	default:
		return 0, 0, fmt.Errorf("%d tokens of %s fit: add serial= or slot-id=", found, t.module)
	}
}

func (t *tokenURI) describes(slot uint, info *pkcs11.TokenInfo) bool {
	if t.slot != nil && *t.slot != slot || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
		return false
	}
	for _, a := range [][2]string{{t.token, info.Label}, {t.serial, info.SerialNumber}, {t.model, info.Model}, {t.manufacturer, info.ManufacturerID}} {
		// Fields are padded with blanks, which the module's wrapper may have cut off.
		if a[0] != "" && a[0] != strings.TrimRight(a[1], " \x00") {
			return false
		}
	}
	return true
}

// find returns the only key pair of the token that the URI describes.
func (t *tokenURI) find(session *crypto11.Context) (crypto11.Signer, error) {
	wanted := crypto11.NewAttributeSet()
	var errID, errLabel error
	if t.id != nil {
		errID = wanted.Set(crypto11.CkaId, t.id)
	}
	if t.object != "" {
		errLabel = wanted.Set(crypto11.CkaLabel, t.object)
	}
	if err := errors.Join(errID, errLabel); err != nil {
		return nil, fmt.Errorf("look for key: %w", err)
	}
	private, err := session.FindPrivateKeysWithAttributes(wanted.Copy())
	if err != nil {
		return nil, fmt.Errorf("look for key: %w", err)
	}
	switch len(private) {
	case 0:
		return nil, errors.New("the token has no such private key")
	case 1:
	default:
		return nil, fmt.Errorf("%d private keys fit: add id= or object= to the URI", len(private))
	}
	pairs, err := session.FindKeyPairsWithAttributes(wanted)
	if err != nil {
		return nil, fmt.Errorf("look for key: %w", err)
	}
	if len(pairs) != 1 {
		return nil, errors.New("the token has the private key, but neither public key nor certificate with the same id")
	}
	return pairs[0], nil
}
