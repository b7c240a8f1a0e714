package server

import (
	_ "embed"
	"net/http"
)

//go:embed openapi.json
var openAPIDocument []byte

// openAPI returns the document that describes the API for operators.
func (s *Server) openAPI(c *call) error {
	c.w.Header().Set("Content-Type", contentJSON)
	c.w.WriteHeader(http.StatusOK)
	_, _ = c.w.Write(openAPIDocument)
	return nil
}
