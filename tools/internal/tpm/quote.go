package tpm

import (
	"bytes"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// quoteTries bounds how often a quote is repeated because a PCR changed between reading it
// and quoting it. Nothing is signed in that window, so it is short even on a slow TPM.
const quoteTries = 16

// Quote is a signed statement of the TPM about PCRs, with the values it is about.
type Quote struct {
	Message   []byte // TPMS_ATTEST
	Signature []byte // TPMT_SIGNATURE
	Values    [][]byte
}

// Quote signs the selected PCRs with nonce. Values are in the order of the selection: bank
// after bank as given, PCRs ascending in each. Every selected PCR has to exist: a TPM would
// silently leave out the others.
func (k *AK) Quote(nonce []byte, selection tpm2.TPMLPCRSelection) (*Quote, error) {
	for range quoteTries {
		values, err := k.tpm.PCRs(selection)
		if err != nil {
			return nil, err
		}
		rsp, err := tpm2.Quote{
			SignHandle:     authorized(k.key),
			QualifyingData: tpm2.TPM2BData{Buffer: nonce},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect:      selection,
		}.Execute(k.tpm)
		if err != nil {
			return nil, fmt.Errorf("quote PCRs: %w", err)
		}
		same, err := describes(rsp, values)
		if err != nil {
			return nil, fmt.Errorf("quote PCRs: %w", err)
		}
		if same {
			return &Quote{Message: rsp.Quoted.Bytes(), Signature: tpm2.Marshal(rsp.Signature), Values: values}, nil
		}
	}
	return nil, fmt.Errorf("quote PCRs: they changed during each of %d quotes", quoteTries)
}

// describes says whether the quote is of these values. The digest is made with the hash of
// the signing scheme (TPM 2.0 part 3, TPM2_Quote).
func describes(q *tpm2.QuoteResponse, values [][]byte) (bool, error) {
	attest, err := q.Quoted.Contents()
	if err != nil {
		return false, err
	}
	quoted, err := attest.Attested.Quote()
	if err != nil {
		return false, err
	}
	alg, err := signatureHash(q.Signature)
	if err != nil {
		return false, err
	}
	hash, err := alg.Hash()
	if err != nil {
		return false, err
	}
	h := hash.New()
	for _, v := range values {
		h.Write(v)
	}
	return bytes.Equal(h.Sum(nil), quoted.PCRDigest.Buffer), nil
}

func signatureHash(s tpm2.TPMTSignature) (tpm2.TPMIAlgHash, error) {
	switch s.SigAlg {
	case tpm2.TPMAlgRSASSA:
		sig, err := s.Signature.RSASSA()
		if err != nil {
			return 0, err
		}
		return sig.Hash, nil
	case tpm2.TPMAlgRSAPSS:
		sig, err := s.Signature.RSAPSS()
		if err != nil {
			return 0, err
		}
		return sig.Hash, nil
	case tpm2.TPMAlgECDSA:
		sig, err := s.Signature.ECDSA()
		if err != nil {
			return 0, err
		}
		return sig.Hash, nil
	}
	return 0, fmt.Errorf("signature algorithm %#x is not one of a key that this program makes", uint16(s.SigAlg))
}

// PCRs reads the selected PCRs in the order of [AK.Quote]. A PCR that the TPM does not have
// in that bank is an error.
func (t *TPM) PCRs(selection tpm2.TPMLPCRSelection) ([][]byte, error) {
	var values [][]byte
	for _, bank := range selection.PCRSelections {
		left := bytes.Clone(bank.PCRSelect)
		for len(bytes.Trim(left, "\x00")) > 0 {
			rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{
				PCRSelections: []tpm2.TPMSPCRSelection{{Hash: bank.Hash, PCRSelect: left}},
			}}.Execute(t)
			if err != nil {
				return nil, fmt.Errorf("read PCRs: %w", err)
			}
			got, ok := readSelection(rsp, bank.Hash, left)
			if !ok {
				return nil, fmt.Errorf("read PCRs: the TPM has no bank %v, or not all of the PCRs asked for", bank.Hash)
			}
			for _, d := range rsp.PCRValues.Digests {
				values = append(values, d.Buffer)
			}
			for i := range left {
				left[i] &^= got[i]
			}
		}
	}
	return values, nil
}

// readSelection returns which PCRs an answer holds, the lowest of those asked for (a TPM
// returns at most eight at once); it is not ok when the answer skips one or holds none.
func readSelection(rsp *tpm2.PCRReadResponse, hash tpm2.TPMIAlgHash, asked []byte) (got []byte, ok bool) {
	if len(rsp.PCRSelectionOut.PCRSelections) != 1 || len(rsp.PCRValues.Digests) == 0 {
		return nil, false
	}
	out := rsp.PCRSelectionOut.PCRSelections[0]
	if out.Hash != hash {
		return nil, false
	}
	got = make([]byte, len(asked))
	copy(got, out.PCRSelect)
	count := 0
	for pcr := range 8 * len(asked) {
		bit := byte(1) << (pcr % 8)
		if asked[pcr/8]&bit == 0 || count == len(rsp.PCRValues.Digests) {
			if got[pcr/8]&bit != 0 {
				return nil, false
			}
			continue
		}
		if got[pcr/8]&bit == 0 {
			return nil, false
		}
		count++
	}
	return got, count == len(rsp.PCRValues.Digests)
}
