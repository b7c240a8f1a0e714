package server

import (
	"net/http"
	"strings"
)

// Role is who may call a route. A caller with a later role may call what is for the
// operators before it; a device calls its own routes only.
type Role string

const (
	Public   Role = "public"
	Device   Role = "device"   // with the token of a session, for its own id
	Operator Role = "operator" // or admin
	Admin    Role = "admin"
)

// shape is how answers of a route look when they are errors.
type shape int

const (
	shapeAPI     shape = iota // {"error": {...}}
	shapeKeylime              // {"code", "status", "results"}
	shapePush                 // JSON:API
)

// route is one line of the table.
type route struct {
	method, path string
	roles        []Role // any of them; Admin may do what Operator may
	shape        shape
	handle       func(*Server, *call) error
}

// registrarRoutes are Keylime's registrar API.
var registrarRoutes = []route{
	{"GET", "/version", []Role{Public}, shapeKeylime, (*Server).registrarVersion},
	{"POST", "/{version}/agents/{id}", []Role{Public}, shapeKeylime, (*Server).register},
	{"PUT", "/{version}/agents/{id}", []Role{Public}, shapeKeylime, (*Server).activate},
	{"PUT", "/{version}/agents/{id}/activate", []Role{Public}, shapeKeylime, (*Server).activate},
	{"POST", "/{version}/agents/{id}/activate", []Role{Public}, shapeKeylime, (*Server).activate},
	{"GET", "/{version}/agents/{$}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantRegistered},
	{"GET", "/{version}/agents/{id}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantIdentity},
	{"DELETE", "/{version}/agents/{id}", []Role{Tenant, Admin}, shapeKeylime, (*Server).tenantForget},
}

// verifierRoutes are Keylime's push attestation and the API for operators.
var verifierRoutes = []route{
	{"GET", "/version", []Role{Public}, shapeKeylime, (*Server).verifierVersion},
	{"POST", "/{version}/sessions", []Role{Public}, shapePush, (*Server).newSession},
	{"PATCH", "/{version}/sessions/{session}", []Role{Public}, shapePush, (*Server).proveSession},
	{"POST", "/{version}/agents/{id}/attestations", []Role{Device}, shapePush, (*Server).negotiate},
	{"PATCH", "/{version}/agents/{id}/attestations/{index}", []Role{Device}, shapePush, (*Server).attest},
	{"GET", "/{version}/agents/{id}/attestations/{index}", []Role{Device, Operator}, shapePush, (*Server).showAttestation},

	{"GET", "/versions", []Role{Public}, shapeKeylime, (*Server).verifierVersion},
	{"GET", "/{version}/agents/{$}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantList},
	{"GET", "/{version}/agents/{id}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantStatus},
	{"POST", "/{version}/agents/{id}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantAddAgent},
	{"DELETE", "/{version}/agents/{id}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantRemove},
	{"PUT", "/{version}/agents/{id}/reactivate", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantReactivate},
	{"PUT", "/{version}/agents/{id}/stop", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantStop},
	{"GET", "/{version}/allowlists/{$}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantPolicies},
	{"GET", "/{version}/allowlists/{name}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantShowPolicy},
	{"POST", "/{version}/allowlists/{name}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantAddPolicy},
	{"PUT", "/{version}/allowlists/{name}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantUpdatePolicy},
	{"DELETE", "/{version}/allowlists/{name}", []Role{Tenant, Admin}, shapeKeylime, (*Server).tenantDeletePolicy},
	{"GET", "/{version}/mbpolicies/{$}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantMBPolicies},
	{"GET", "/{version}/mbpolicies/{name}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantShowMBPolicy},
	{"POST", "/{version}/mbpolicies/{name}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantAddMBPolicy},
	{"PUT", "/{version}/mbpolicies/{name}", []Role{Tenant, Operator}, shapeKeylime, (*Server).tenantUpdateMBPolicy},
	{"DELETE", "/{version}/mbpolicies/{name}", []Role{Tenant, Admin}, shapeKeylime, (*Server).tenantDeleteMBPolicy},
	{"GET", "/{version}/agents/{id}/notices", []Role{Device}, shapePush, (*Server).pollNotices},

	{"POST", "/{version}/agents/{id}/secrets", []Role{Device}, shapePush, (*Server).giveSecrets},

	{"GET", "/api/v1/openapi.json", []Role{Public}, shapeAPI, (*Server).openAPI},
	{"GET", "/api/v1/status", []Role{Operator}, shapeAPI, (*Server).status},
	{"GET", "/api/v1/devices", []Role{Operator}, shapeAPI, (*Server).listDevices},
	{"POST", "/api/v1/devices", []Role{Operator}, shapeAPI, (*Server).addDevice},
	{"GET", "/api/v1/devices/{id}", []Role{Operator}, shapeAPI, (*Server).showDevice},
	{"PATCH", "/api/v1/devices/{id}", []Role{Operator}, shapeAPI, (*Server).changeDevice},
	{"DELETE", "/api/v1/devices/{id}", []Role{Admin}, shapeAPI, (*Server).deleteDevice},
	{"POST", "/api/v1/devices/{id}/import", []Role{Admin}, shapeAPI, (*Server).importDevice},
	{"GET", "/api/v1/devices/{id}/verdict", []Role{Operator}, shapeAPI, (*Server).explainDevice},
	{"GET", "/api/v1/policies", []Role{Operator}, shapeAPI, (*Server).listPolicies},
	{"POST", "/api/v1/policies/{name}", []Role{Operator}, shapeAPI, (*Server).putPolicy},
	{"GET", "/api/v1/policies/{name}", []Role{Operator}, shapeAPI, (*Server).showPolicy},
	{"PUT", "/api/v1/policies/{name}/active", []Role{Operator}, shapeAPI, (*Server).activatePolicy},
	{"GET", "/api/v1/policies/{name}/versions/{policyVersion}", []Role{Operator}, shapeAPI, (*Server).policyBody},
	{"DELETE", "/api/v1/policies/{name}", []Role{Admin}, shapeAPI, (*Server).deletePolicy},
	{"GET", "/api/v1/secrets", []Role{Operator}, shapeAPI, (*Server).listSecrets},
	{"POST", "/api/v1/secrets/{name}", []Role{Operator}, shapeAPI, (*Server).putSecret},
	{"GET", "/api/v1/secrets/{name}", []Role{Operator}, shapeAPI, (*Server).showSecret},
	{"PATCH", "/api/v1/secrets/{name}", []Role{Operator}, shapeAPI, (*Server).assignSecret},
	{"DELETE", "/api/v1/secrets/{name}", []Role{Admin}, shapeAPI, (*Server).deleteSecret},
	{"GET", "/api/v1/events", []Role{Operator}, shapeAPI, (*Server).listEvents},
	{"GET", "/api/v1/events/check", []Role{Operator}, shapeAPI, (*Server).checkEvents},
	{"GET", "/api/v1/evidence/{digest}", []Role{Operator}, shapeAPI, (*Server).downloadEvidence},
	{"GET", "/api/v1/notices", []Role{Operator}, shapeAPI, (*Server).listNotices},
	{"POST", "/api/v1/notices/{notice}/retry", []Role{Operator}, shapeAPI, (*Server).retryNotice},
	{"DELETE", "/api/v1/notices/{notice}", []Role{Admin}, shapeAPI, (*Server).dropNotice},
	{"GET", "/api/v1/tokens", []Role{Admin}, shapeAPI, (*Server).listTokens},
	{"POST", "/api/v1/tokens", []Role{Admin}, shapeAPI, (*Server).createToken},
	{"DELETE", "/api/v1/tokens/{name}", []Role{Admin}, shapeAPI, (*Server).deleteToken},
}

// Registrar answers devices that enrol.
func (s *Server) Registrar() http.Handler { return s.handler("registrar", registrarRoutes) }

// Verifier answers devices that attest, and operators.
func (s *Server) Verifier() http.Handler { return s.handler("verifier", verifierRoutes) }

func (s *Server) handler(listener string, routes []route) http.Handler {
	mux := http.NewServeMux()
	for _, r := range routes {
		mux.Handle(r.method+" "+r.path, &endpoint{s, listener, r})
	}
	mux.Handle("/", &endpoint{s, listener, route{path: "/", roles: []Role{Public}, shape: shapeAPI,
		handle: func(*Server, *call) error {
			return fail(http.StatusNotFound, "no_path", "no such path or method at the port of the %s", listener)
		}}})
	return mux
}

// version checks the {version} of a path against what is spoken.
func (c *call) version(major string) error {
	v := c.PathValue("version")
	known := v == "v"+major
	for _, have := range supported[major] {
		known = known || v == "v"+have
	}
	if known {
		return nil
	}
	if major == "2" && !strings.HasPrefix(v, "v3") {
		return fail(http.StatusBadRequest, "version", "API version not supported")
	}
	return fail(http.StatusGone, "version", "API version not supported")
}

var supported = map[string][]string{
	"2": {"2.1", "2.2", "2.3", "2.4", "2.5", "2.6"},
	"3": {"3.0"},
}
