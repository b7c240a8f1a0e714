package tpm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// EK is the endorsement key: the TPM's own, made from its seed, so the same each time.
type EK struct {
	// Template names the template of the TCG EK Credential Profile: one of [EKTemplates].
	Template string
	// Public is the TPM2B_PUBLIC of the key.
	Public []byte
	// Certificate is what the NV index of the key's certificate holds: DER, as a rule, with
	// whatever the manufacturer put around it. Nil when the TPM has none.
	Certificate []byte
	// Chain is what the TPM holds of its issuers' certificates, in the same raw form.
	Chain []byte

	tpm    *TPM
	key    tpm2.NamedHandle
	policy bool
}

type ekTemplate struct {
	name   string
	cert   tpm2.TPMHandle // NV index of the certificate
	nonce  tpm2.TPMHandle // NV index of the unique field, 0 where the profile has none
	custom tpm2.TPMHandle // NV index of a template that replaces ours
	public tpm2.TPMTPublic
}

// Policies of the high range: PolicyOR of endorsement authorization and of an NV policy
// (PolicyB of the profile, 2.2.1.5.1); userWithAuth is set too, so they need not be run.
const (
	policyB256 = "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"
	policyB384 = "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)

// ekTemplates are those of the TCG EK Credential Profile 2.5, 2.2.1.4 and B.3, B.4, in the
// order in which they are tried. SM2 and P-521 have no peer that could check them.
func ekTemplates() []ekTemplate {
	return []ekTemplate{
		{"rsa2048", 0x01c00002, 0x01c00003, 0x01c00004, tpm2.RSAEKTemplate},
		{"ecc-p256", 0x01c0000a, 0x01c0000b, 0x01c0000c, tpm2.ECCEKTemplate},
		{"rsa2048-high", 0x01c00012, 0, 0x01c00013, highRSA(2048, tpm2.TPMAlgSHA256, 128, policyB256)},
		{"ecc-p256-high", 0x01c00014, 0, 0x01c00015, highECC(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, 128, policyB256)},
		{"ecc-p384-high", 0x01c00016, 0, 0x01c00017, highECC(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384, 256, policyB384)},
		{"rsa3072-high", 0x01c0001c, 0, 0x01c0001d, highRSA(3072, tpm2.TPMAlgSHA384, 256, policyB384)},
		{"rsa4096-high", 0x01c0001e, 0, 0x01c0001f, highRSA(4096, tpm2.TPMAlgSHA384, 256, policyB384)},
	}
}

// EKTemplates are the names that [TPM.EK] takes.
func EKTemplates() []string {
	var names []string
	for _, t := range ekTemplates() {
		names = append(names, t.name)
	}
	return names
}

func high(nameAlg tpm2.TPMAlgID, policy string) tpm2.TPMTPublic {
	digest, _ := hex.DecodeString(policy)
	return tpm2.TPMTPublic{
		NameAlg: nameAlg,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			AdminWithPolicy: true, Restricted: true, Decrypt: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: digest},
	}
}

func aes(bits tpm2.TPMKeyBits) tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

func highRSA(bits tpm2.TPMIRSAKeyBits, nameAlg tpm2.TPMAlgID, aesBits tpm2.TPMKeyBits, policy string) tpm2.TPMTPublic {
	p := high(nameAlg, policy)
	p.Type = tpm2.TPMAlgRSA
	p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSRSAParms{Symmetric: aes(aesBits), KeyBits: bits})
	return p
}

func highECC(curve tpm2.TPMECCCurve, nameAlg tpm2.TPMAlgID, aesBits tpm2.TPMKeyBits, policy string) tpm2.TPMTPublic {
	p := high(nameAlg, policy)
	p.Type = tpm2.TPMAlgECC
	p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSECCParms{Symmetric: aes(aesBits), CurveID: curve})
	return p
}

// EK makes the endorsement key of the named template; "" takes the first template for which
// the TPM holds a certificate, and "rsa2048" when it holds none. Making an RSA key takes
// some TPMs many seconds. The caller closes the key.
func (t *TPM) EK(template string) (*EK, error) {
	all := ekTemplates()
	if template != "" {
		i := slices.IndexFunc(all, func(e ekTemplate) bool { return e.name == template })
		if i < 0 {
			return nil, fmt.Errorf("make endorsement key: template %q is unknown: use one of %v", template, EKTemplates())
		}
		cert, err := t.readNV(all[i].cert)
		if err != nil {
			return nil, err
		}
		return t.makeEK(all[i], cert)
	}
	for _, e := range all {
		cert, err := t.readNV(e.cert)
		if err != nil {
			return nil, err
		}
		if cert != nil {
			return t.makeEK(e, cert)
		}
	}
	return t.makeEK(all[0], nil)
}

func (t *TPM) makeEK(e ekTemplate, cert []byte) (*EK, error) {
	public, err := t.customize(e)
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(public),
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("make endorsement key %s: %w", e.name, ownedError(err))
	}
	ek := &EK{
		Template: e.name, Public: tpm2.Marshal(rsp.OutPublic), Certificate: cert, tpm: t,
		key:    tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name},
		policy: !public.ObjectAttributes.UserWithAuth,
	}
	if ek.Chain, err = t.readChain(); err != nil {
		ek.Close()
		return nil, err
	}
	return ek, nil
}

// customize applies what the manufacturer put into NV memory: a template of its own, and
// the value of the unique field from which the key is derived.
func (t *TPM) customize(e ekTemplate) (tpm2.TPMTPublic, error) {
	public := e.public
	if own, err := t.readNV(e.custom); err != nil {
		return public, err
	} else if own != nil {
		p, err := tpm2.Unmarshal[tpm2.TPMTPublic](own)
		if err != nil {
			return public, fmt.Errorf("read EK template in NV index %#x: %w", e.custom, err)
		}
		public = *p
	}
	if e.nonce == 0 {
		return public, nil
	}
	nonce, err := t.readNV(e.nonce)
	if err != nil || nonce == nil {
		return public, err
	}
	switch public.Type {
	case tpm2.TPMAlgRSA:
		public.Unique = tpm2.NewTPMUPublicID(public.Type, &tpm2.TPM2BPublicKeyRSA{Buffer: pad(nonce, 256)})
	case tpm2.TPMAlgECC:
		public.Unique = tpm2.NewTPMUPublicID(public.Type, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: pad(nonce, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		})
	}
	return public, nil
}

// pad fills b with zeros to n bytes; more than n are cut off, as the profile has no such nonce.
func pad(b []byte, n int) []byte {
	return append(make([]byte, 0, n), append(b, make([]byte, n)...)[:n]...)
}

// Close frees the key's slot in the TPM.
func (k *EK) Close() { k.tpm.flush(k.key.Handle) }

// Activate opens the credential that a registrar made for this endorsement key and ak:
// idObject is the buffer of the TPM2B_ID_OBJECT, secret that of the TPM2B_ENCRYPTED_SECRET.
// Only the TPM that holds both keys can.
func (k *EK) Activate(ak *AK, idObject, secret []byte) ([]byte, error) {
	auth, done, err := k.authorize()
	if err != nil {
		return nil, err
	}
	defer done()
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: ak.key.Handle, Name: ak.key.Name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: k.key.Handle, Name: k.key.Name, Auth: auth},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: idObject},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: secret},
	}.Execute(k.tpm)
	if err != nil {
		return nil, fmt.Errorf("activate credential: %w", k.credentialError(err))
	}
	return rsp.CertInfo.Buffer, nil
}

func (k *EK) credentialError(err error) error {
	for _, wrong := range []tpm2.TPMRC{tpm2.TPMRCIntegrity, tpm2.TPMRCValue, tpm2.TPMRCSize, tpm2.TPMRCECCPoint, tpm2.TPMRCInsufficient} {
		if errors.Is(err, wrong) {
			return fmt.Errorf("%w: %w", ErrCredential, err)
		}
	}
	// libtpms says so of a text that was encrypted to another RSA key. A TPM that has
	// really failed answers nothing else from then on.
	if errors.Is(err, tpm2.TPMRCFailure) {
		if _, clockErr := k.tpm.Clock(); clockErr == nil {
			return fmt.Errorf("%w: %w", ErrCredential, err)
		}
	}
	return err
}

// authorize returns the authorization that the template asks for: a policy session with
// the endorsement hierarchy's (empty) secret, or the key's own empty password.
func (k *EK) authorize() (tpm2.Session, func(), error) {
	if !k.policy {
		return tpm2.PasswordAuth(nil), func() {}, nil
	}
	session, end, err := tpm2.PolicySession(k.tpm, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return nil, nil, fmt.Errorf("start TPM session: %w", err)
	}
	done := func() { _ = end() } // a session that was used up is gone already
	_, err = tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session.Handle(),
		NonceTPM:      session.NonceTPM(),
	}.Execute(k.tpm)
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("authorize endorsement key: %w", ownedError(err))
	}
	return session, done, nil
}

// ownedError names the reason where the TPM says only that a password was wrong.
func ownedError(err error) error {
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		return fmt.Errorf("%w: %w", ErrOwned, err)
	}
	return err
}
