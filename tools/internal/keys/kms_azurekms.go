//go:build azurekms

package keys

import _ "github.com/sigstore/sigstore/pkg/signature/kms/azure" // azurekms://
