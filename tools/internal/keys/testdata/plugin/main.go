// Plugin is a key management service for tests: a program of sigstore's plug-in protocol
// whose keys are folders. The folder DIR of sigstore-kms-test://DIR holds key.pem and,
// if wanted, "fail" (a digit for each call to sign that is to fail) and "answer" (what to
// answer instead of a signature: garbage, empty, noise, pss). Each call to sign adds a line
// to the file "calls".
package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/common"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/handler"
)

type service struct {
	signature.SignerVerifier
	dir string
	key crypto.PrivateKey
}

func main() {
	args, err := handler.GetPluginArgs(os.Args)
	if err != nil {
		log.Fatal(err)
	}
	if err := serve(args); err != nil {
		handler.WriteErrorResponse(os.Stdout, err)
		os.Exit(1)
	}
}

func serve(args *common.PluginArgs) error {
	s := &service{dir: args.InitOptions.KeyResourceID}
	if args.MethodName == common.SignMessageMethodName {
		if handled, err := s.misbehave(); handled {
			return err
		}
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "key.pem"))
	if err != nil {
		return err
	}
	if s.key, err = cryptoutils.UnmarshalPEMToPrivateKey(text, cryptoutils.SkipPassword); err != nil {
		return err
	}
	switch k := s.key.(type) {
	case *rsa.PrivateKey:
		s.SignerVerifier, err = signature.LoadRSAPKCS1v15SignerVerifier(k, args.InitOptions.HashFunc)
	case *ecdsa.PrivateKey:
		s.SignerVerifier, err = signature.LoadECDSASignerVerifier(k, args.InitOptions.HashFunc)
	default:
		s.SignerVerifier, err = signature.LoadDefaultSignerVerifier(k)
	}
	if err != nil {
		return err
	}
	_, err = handler.Dispatch(os.Stdout, os.Stdin, args, s)
	return err
}

// misbehave does what the files of the folder ask for instead of signing.
func (s *service) misbehave() (handled bool, err error) {
	calls, err := os.OpenFile(filepath.Join(s.dir, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return true, err
	}
	fmt.Fprintln(calls, os.Getpid())
	calls.Close()
	if fail, _ := os.ReadFile(filepath.Join(s.dir, "fail")); len(fail) > 0 {
		if err := os.WriteFile(filepath.Join(s.dir, "fail"), fail[1:], 0o600); err != nil {
			return true, err
		}
		return true, errors.New("service is busy")
	}
	answer, _ := os.ReadFile(filepath.Join(s.dir, "answer"))
	switch string(answer) {
	case "garbage":
		return true, handler.WriteResponse(os.Stdout, &common.PluginResp{SignMessage: &common.SignMessageResp{Signature: []byte("not a signature")}})
	case "empty":
		return true, handler.WriteResponse(os.Stdout, &common.PluginResp{})
	case "noise":
		_, err := os.Stdout.WriteString("Segmentation fault")
		return true, err
	case "slow":
		time.Sleep(time.Hour)
	}
	return false, nil
}

// SignMessage makes the signature that a service with other defaults makes.
func (s *service) SignMessage(message io.Reader, opts ...signature.SignOption) ([]byte, error) {
	answer, _ := os.ReadFile(filepath.Join(s.dir, "answer"))
	if string(answer) != "pss" {
		return s.SignerVerifier.SignMessage(message, opts...)
	}
	var digest []byte
	var hash crypto.SignerOpts
	for _, o := range opts {
		o.ApplyDigest(&digest)
		o.ApplyCryptoSignerOpts(&hash)
	}
	return rsa.SignPSS(rand.Reader, s.key.(*rsa.PrivateKey), hash.HashFunc(), digest, nil)
}

func (s *service) CreateKey(context.Context, string) (crypto.PublicKey, error) {
	return nil, errors.New("keys are made by tests")
}

func (s *service) CryptoSigner(context.Context, func(error)) (crypto.Signer, crypto.SignerOpts, error) {
	return nil, nil, errors.New("not part of the protocol")
}

func (s *service) SupportedAlgorithms() []string { return []string{"any"} }
func (s *service) DefaultAlgorithm() string      { return "any" }
