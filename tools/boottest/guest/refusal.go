package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Records of the types AUDIT_INTEGRITY_POLICY_RULE, one for each rule that the kernel comes to,
// and AUDIT_INTEGRITY_STATUS, for the policy as a whole.
var (
	ruleRecord   = regexp.MustCompile(`(?m)audit: type=1807 .*res=([01])$`)
	updateRecord = regexp.MustCompile(`audit: type=1802 .* op=policy_update cause=(\S+) `)
)

// refusal has the kernel read a policy that it must not take, and returns "line N" for the
// line that it stopped at, or "empty" if it found no rule.
func refusal(args []string) (string, error) {
	text, err := os.ReadFile(args[0])
	if err != nil {
		return "", err
	}
	log, err := openLog()
	if err != nil {
		return "", err
	}
	defer log.close()
	if err := log.mark(); err != nil {
		return "", err
	}
	_, refused := policy(args)
	var rules, outcome string // a digit for each rule: 1 if it was accepted
	err = log.each(func(text string) {
		if m := ruleRecord.FindStringSubmatch(text); m != nil {
			rules += m[1]
		}
		if m := updateRecord.FindStringSubmatch(text); m != nil {
			outcome += m[1]
		}
	})
	switch {
	case err != nil:
		return "", err
	case rules == "" && refused != nil: // it did not come to the text
		return "", refused
	case outcome != "failed":
		return "", fmt.Errorf("the policy update %q: rules %s", outcome, rules)
	case rules == "":
		return "empty", nil
	case refused == nil || strings.IndexByte(rules, '0') != len(rules)-1:
		return "", fmt.Errorf("rules %s, but writing returned %v", rules, refused)
	}
	line, err := lineOfRule(text, len(rules))
	return fmt.Sprintf("line %d", line), err
}

// lineOfRule returns the line of the n-th rule, from 1: empty lines and comments are none.
func lineOfRule(text []byte, n int) (int, error) {
	for i, line := range bytes.Split(text, []byte("\n")) {
		if line = bytes.TrimLeft(line, " \t"); len(line) > 0 && line[0] != '#' {
			n--
		}
		if n == 0 {
			return i + 1, nil
		}
	}
	return 0, errors.New("the kernel counts more rules than there are lines")
}
