//go:build gcpkms

package keys

import _ "github.com/sigstore/sigstore/pkg/signature/kms/gcp" // gcpkms://
