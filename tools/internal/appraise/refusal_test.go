package appraise

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"github.com/meta-attest/meta-attest/tools/internal/evidence"
)

// TestRefusalAdvice: each code of package evidence has advice, and one of its own.
func TestRefusalAdvice(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../evidence/doc.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, d := range file.Decls {
		consts, ok := d.(*ast.GenDecl)
		if !ok || consts.Tok != token.CONST {
			continue
		}
		for _, s := range consts.Specs {
			spec := s.(*ast.ValueSpec)
			code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			v := Refused(&evidence.Error{Code: evidence.Code(code), Err: errors.New("x")})
			advice := v.Reasons[0].Advice
			if v.Status == Trusted || v.Reasons[0].Code != Code(code) || advice == "" || seen[advice] != "" {
				t.Errorf("%s: %+v, as %s", code, v, seen[advice])
			}
			seen[advice] = code
		}
	}
	if len(seen) < 20 {
		t.Errorf("%d codes were found", len(seen))
	}
}
