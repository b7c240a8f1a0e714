package server

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// rows says which test tries which known attack: faults of Keylime and its peers first, by
// the name under which they were published, then what a TPM, a measurement list or a network
// lets somebody try. A row without tests says why there is nothing to try.
var rows = []struct{ attack, tests, why string }{
	{"CVE-2021-3406: EK of one TPM, AK of another; AK that is not restricted", "TestActivation TestEachAttributeOfAK TestTakeover TestForeignTPM", ""},
	{"CVE-2021-43310: keys of a payload set anew by anybody", "", "no payload is delivered"},
	{"CVE-2022-23948: secrets in a mount that somebody made before", "", "no payload is delivered; the agent's state holds nothing secret: TestStateFolder"},
	{"CVE-2022-23949: an id that writes lines of the log", "TestVersions TestCheckID testHostileIDs", ""},
	{"CVE-2022-23950: a socket at a fixed path in /tmp", "", "there is no socket; temporary files have names of os.CreateTemp"},
	{"CVE-2022-23951: a quote that unpacks to more than memory", "TestBombs testBomb TestLimits TestEndlessBody TestManyValues", ""},
	{"CVE-2022-23952: a secret that every user may read", "TestReadableKey TestSQLiteRefused", ""},
	{"CVE-2022-1053: one key validated, another one trusted", "testAttestRefuses testReRegistrationRace TestTakeover", ""},
	{"CVE-2022-3500: an answer that ends the polling, and leaves the device green", "TestForgery TestPanic TestOverdue FuzzDecode", ""},
	{"CVE-2023-3674: a bad signature that is logged only", "TestForgery TestQuoteAttacks", ""},
	{"CVE-2023-38200: one idle connection stops the registrar", "TestFlood TestIdle", ""},
	{"CVE-2023-38201: the error tells the right answer; tries without end", "TestTries TestTakeover TestCanary", ""},
	{"CVE-2025-1057: rows of the version before are not understood", "TestOldDatabase TestNewerDatabase testNewerSchema", ""},
	{"CVE-2025-13609: an id registered again by another TPM", "TestTakeover testReRegistrationRace testFirstRegistrationRace", ""},
	{"CVE-2026-1709: routes without a credential; tokens that are stored or logged", "TestRoutes TestCanary testTokens", ""},
	{"CVE-2026-6420: a challenge that is always the same", "TestChallenges TestReplay TestReplayedNonce", ""},
	{"keylime 95dff5ea: a stranger ends the session of a device", "TestLimits TestCrowd testSessionBounds", ""},
	{"keylime b382aa0d, 84226c32, a46902fc: stale caches, caches without bound, lost writes", "TestReplicas TestSharing TestKeysForgotten TestCrowd testAttestRace testPolicyChange", ""},
	{"keylime 940861a2: an empty policy skips the checks", "TestDevice TestEmptyNeverTrusted TestNoReference", ""},
	{"keylime ima.py: excludes that are not checked, unknown algorithms taken for SHA-1", "TestRuntimePolicy TestParseRules TestCompileErrors", ""},
	{"CVE-2022-0317: a quote of no PCR", "TestSelections TestQuoteAttacks", ""},
	{"CVE-2025-64186: a missing PCR counts as one that matches", "TestEachMissingPCR", ""},
	{"CVE-2022-29173: an older document is taken", "TestPolicy testPolicyVersions testVersionsNeverDecrease", ""},
	{"CVE-2024-45395: an envelope without end, or with a million signatures", "TestEnvelopeRefused TestPayloadTooLarge", ""},

	{"a nonce again, or that of another device", "TestReplay TestOneAnswer TestPossession", ""},
	{"another AK under the id", "TestReplay TestRelay TestSoft", ""},
	{"the quote of another TPM, relayed", "TestRelay", ""},
	{"something else that the AK signed", "TestForgery TestEachAttributeOfAK TestQuoteAttacks", ""},
	{"a list that is cut, reordered, repeated or edited", "TestForgery TestListAttacks TestEveryPermutation", ""},
	{"a tail that no quote ever covers", "TestTailThatIsNeverQuoted TestPending", ""},
	{"a template hash that is not that of its data", "TestListAttacks", ""},
	{"violations", "TestWarnings TestOldViolation", ""},
	{"a weak bank, template or digest", "TestSelections TestWeakAndStrangeKeys TestAppraise", ""},
	{"boot_aggregate that is wrong, missing, late or there twice", "TestAppraise", ""},
	{"a boot, a suspend, a clock that goes back or is not safe", "TestReboot TestClocks TestSuspend TestRestart TestHistories TestBootsAndCounters testCounters", ""},
	{"a boot, and the agent goes on from the old offset", "TestClocks TestReboot", ""},
	{"the clock of the server jumps", "TestServerClock TestOverdue", ""},
	{"a firmware log that is forged, missing or another's", "TestFirmware TestFirmwareForged TestFirmwareAttacks TestSecureBootForged TestSecureBootOtherBank TestFirmwareRestart", ""},
	{"a policy that is older, unsigned or signed by another", "TestPolicy TestManifest TestKeysAsSigstore", ""},
	{"what is too large, too long or too often", "TestLimits TestBombs TestCrowd TestHostile", ""},
	{"a path that is not one", "TestPathTricks TestHostile TestPrintable", ""},
	{"files in an excluded folder", "TestWarnings", ""},
	{"the verifier's key is stolen", "", "no verdict is signed: operators ask the server; its TLS certificate is read anew when it was replaced"},
	{"a flood of connections, of enrolments, of sessions, of whole lists", "TestFlood TestCrowd TestQueue TestKeptEvidence testEnrolmentBounds testSessionBounds", ""},
	{"TLS that is old, or a certificate of another CA, of another time, of another role", "TestOldTLS TestRoutes TestWrongServer", ""},
	{"secrets in logs and errors", "TestCanary TestPasswordNotInErrors", ""},
	{"the history is changed in the database", "TestTamperedHistory testChain", ""},
}

// TestRows: each test that a row names is there.
func TestRows(t *testing.T) {
	t.Parallel()
	have := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|test|Fuzz)\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range function.FindAllSubmatch(text, -1) {
			have[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		names := strings.Fields(r.tests)
		if (len(names) == 0) != (r.why != "") {
			t.Errorf("%s: neither a test nor a reason, or both", r.attack)
		}
		for _, name := range names {
			if !have[name] {
				t.Errorf("%s: there is no %s", r.attack, name)
			}
		}
	}
}
