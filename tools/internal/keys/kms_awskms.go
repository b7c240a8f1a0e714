//go:build awskms

package keys

import _ "github.com/sigstore/sigstore/pkg/signature/kms/aws" // awskms://
