package keylimetest

import (
	"fmt"
	"os"
	"strings"
)

// configure writes Keylime's settings: its own defaults, but for ports, paths, intervals that
// a test can wait for, and names in certificates, which our agent compares.
func (k *keylime) configure(mode string) {
	k.t.Helper()
	replace := strings.NewReplacer("@DIR@", k.dir, "@MODE@", mode, "@VERIFIER@", fmt.Sprint(k.ports["verifier"]),
		"@REGISTRAR@", fmt.Sprint(k.ports["registrar"]), "@REGISTRAR_TLS@", fmt.Sprint(k.ports["registrar_tls"]))
	for name, text := range map[string]string{"verifier": verifierConf, "registrar": registrarConf, "tenant": tenantConf, "ca": caConf, "logging": loggingConf} {
		if err := os.WriteFile(k.path(name+".conf"), []byte(replace.Replace(text)), 0o600); err != nil {
			k.t.Fatal(err)
		}
	}
}

const verifierConf = `[verifier]
version = 2.6
uuid = default
ip = 127.0.0.1
port = @VERIFIER@
registrar_ip = 127.0.0.1
registrar_port = @REGISTRAR_TLS@
enable_agent_mtls = True
tls_dir = generate
server_key = default
server_key_password =
server_cert = default
cert_subject_alternative_names = 127.0.0.1
trusted_client_ca = default
client_key = default
client_key_password =
client_cert = default
trusted_server_ca = default
authorization_provider = simple
database_url = sqlite
database_pool_sz_ovfl = 5,10
auto_migrate_db = True
num_workers = 1
max_workers = 1
exponential_backoff = True
retry_interval = 1
max_retries = 5
quote_interval = 1
max_upload_size = 104857600
request_timeout = 60
measured_boot_policy_name = accept-all
measured_boot_imports = []
measured_boot_evaluate = once
severity_labels = ["info", "notice", "warning", "error", "critical", "alert", "emergency"]
severity_policy = [{"event_id": ".*", "severity_label" : "emergency"}]
ignore_tomtou_errors = False
durable_attestation_import =
persistent_store_url =
transparency_log_url =
time_stamp_authority_url =
time_stamp_authority_certs_path =
persistent_store_format = json
persistent_store_encoding =
transparency_log_sign_algo = sha256
signed_attributes =
require_allow_list_signatures = False
mode = @MODE@
challenge_lifetime = 1800
verification_timeout = 0
session_create_rate_limit_per_ip = 50
session_create_rate_limit_window_ip = 60
session_create_rate_limit_per_agent = 15
session_create_rate_limit_window_agent = 60
session_lifetime = 180
extend_token_on_attestation = True
auto_recover_attestation_failures = False
shutdown_drain_timeout = 1

[revocations]
enabled_revocation_notifications = ['agent']
zmq_ip = 127.0.0.1
zmq_port = 8992
webhook_url =
`

const registrarConf = `[registrar]
version = 2.6
ip = 127.0.0.1
port = @REGISTRAR@
tls_port = @REGISTRAR_TLS@
tls_dir = default
server_key = default
server_key_password =
server_cert = default
cert_subject_alternative_names = 127.0.0.1
trusted_client_ca = default
authorization_provider = simple
database_url = sqlite
database_pool_sz_ovfl = 5,10
max_workers = 1
auto_migrate_db = True
durable_attestation_import =
persistent_store_url =
transparency_log_url =
time_stamp_authority_url =
time_stamp_authority_certs_path =
persistent_store_format = json
persistent_store_encoding =
transparency_log_sign_algo = sha256
signed_attributes = ek_tpm,aik_tpm,ekcert
tpm_identity = default
malformed_cert_action = warn
`

const tenantConf = `[tenant]
version = 2.6
verifier_ip = 127.0.0.1
verifier_port = @VERIFIER@
registrar_ip = 127.0.0.1
registrar_port = @REGISTRAR_TLS@
tls_dir = default
enable_agent_mtls = True
client_key = default
client_key_password =
client_cert = default
trusted_server_ca = default
tpm_cert_store = @DIR@/tpm_cert_store
max_payload_size = 1048576
accept_tpm_hash_algs = ['sha512', 'sha384', 'sha256']
accept_tpm_encryption_algs = ['ecc', 'rsa']
accept_tpm_signing_algs = ['ecschnorr', 'rsassa']
exponential_backoff = True
retry_interval = 1
max_retries = 5
request_timeout = 60
require_ek_cert = True
ek_check_script =
mb_refstate =
`

const caConf = `[ca]
version = 2.6
password = keylimetest
cert_country = US
cert_ca_name = Keylime Certificate Authority
cert_state = MA
cert_locality = Lexington
cert_organization = Keylime
cert_org_unit = 53
cert_ca_lifetime = 3650
cert_lifetime = 365
cert_bits = 2048
cert_crl_dist = http://localhost:38080/crl
`

const loggingConf = `[logging]
version = 2.6

[loggers]
keys = root,keylime

[handlers]
keys = consoleHandler

[formatters]
keys = formatter

[formatter_formatter]
format = %(asctime)s - %(name)s - %(levelname)s - %(message)s
datefmt = %H:%M:%S

[logger_root]
level = INFO
handlers = consoleHandler

[handler_consoleHandler]
class = StreamHandler
level = DEBUG
formatter = formatter
args = (sys.stdout,)

[logger_keylime]
level = INFO
qualname = keylime
handlers =
`
