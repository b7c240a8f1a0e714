package ima

import (
	"bytes"
	"crypto/x509"
	"strings"
)

// Issuer returns the certificate among roots whose key signed cert, or which it is. That the
// CA may sign certificates is for keyrings to say: CheckSignatureFrom would hide which.
func Issuer(cert *x509.Certificate, roots []*x509.Certificate) *x509.Certificate {
	for _, ca := range roots {
		if ca.Equal(cert) || ca.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil {
			return ca
		}
	}
	return nil
}

// LinkFault says why the keyrings .ima and .evm refuse cert when the kernel has roots built
// in (restrict_link_by_digsig_builtin), or why no signature would find its key there. It is
// empty if they take it. Without roots, by whom it is signed is not looked at.
func LinkFault(cert *x509.Certificate, roots []*x509.Certificate) string {
	var faults []string
	if cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		faults = append(faults, "keyUsage without digitalSignature")
	}
	if cert.IsCA {
		faults = append(faults, "basicConstraints with CA:TRUE")
	}
	if cert.KeyUsage&x509.KeyUsageCertSign != 0 {
		faults = append(faults, "keyUsage with keyCertSign")
	}
	if len(cert.SubjectKeyId) < keyIDSize {
		faults = append(faults, "no SubjectKeyIdentifier")
	}
	if len(roots) > 0 && Issuer(cert, roots) == nil {
		faults = append(faults, "not signed by the CA")
	}
	if ca := Issuer(cert, roots); ca != nil && len(cert.AuthorityKeyId) > 0 && !bytes.Equal(cert.AuthorityKeyId, ca.SubjectKeyId) {
		faults = append(faults, "AuthorityKeyIdentifier is not the CA's SubjectKeyIdentifier")
	}
	return strings.Join(faults, ", ")
}
