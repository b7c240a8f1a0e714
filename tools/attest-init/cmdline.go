package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options are what the kernel's command line says.
type options struct {
	enforce  bool
	policy   string // absolute path; "" if somebody else loads one
	evm      bool
	root     string
	fstypes  []string // nil: those that the kernel has
	flags    string
	wait     time.Duration // for the device of the root
	delay    time.Duration
	writable bool
	init     string
	initArgs []string

	permissive string // a word that makes the kernel let things pass
}

// defaultWait is for devices that a driver is still looking for; rootwait waits for ever.
const defaultWait = 10 * time.Second

const forever = time.Duration(1<<63 - 1)

// parseCmdline reads the text of /proc/cmdline. Of a word given twice the last one counts,
// but one attest=enforce is enough. In a name "-" is "_", as it is to the kernel (parameqn in
// kernel/params.c).
func parseCmdline(line string) (options, error) {
	o := options{policy: "/etc/ima/ima-policy", wait: defaultWait, init: "/sbin/init"}
	var err error
	words := splitCmdline(line)
	for i, word := range words {
		if word == "--" {
			o.initArgs = words[i+1:]
			break
		}
		name, value, given := strings.Cut(word, "=")
		switch strings.ReplaceAll(name, "-", "_") {
		case "attest":
			switch value {
			case "enforce":
				o.enforce = true
			case "log":
			default:
				return options{}, fmt.Errorf("%s: use attest=enforce or attest=log", word)
			}
		case "attest.policy":
			o.policy = value
		case "attest.evm":
			if o.evm, err = strconv.ParseBool(value); err != nil {
				return options{}, fmt.Errorf("%s: use attest.evm=1 or attest.evm=0", word)
			}
		case "root":
			o.root = value
		case "rootfstype":
			o.fstypes = strings.Split(value, ",")
		case "rootflags":
			o.flags = value
		case "rootwait":
			o.wait = forever
			if given {
				if o.wait, err = seconds(value); err != nil {
					return options{}, fmt.Errorf("%s: %w", word, err)
				}
			}
		case "rootdelay":
			if o.delay, err = seconds(value); err != nil {
				return options{}, fmt.Errorf("%s: %w", word, err)
			}
		case "ro", "rw":
			o.writable = name == "rw"
		case "init":
			o.init = value
		case "ima_appraise", "evm":
			if value != "enforce" {
				o.permissive = word
			}
		}
	}
	return o, o.check()
}

// check says what contradicts.
func (o *options) check() error {
	switch {
	case !strings.HasPrefix(o.init, "/"):
		return fmt.Errorf("init=%s: not an absolute path", o.init)
	case o.permissive != "" && o.enforce:
		return fmt.Errorf("%s contradicts attest=enforce", o.permissive)
	case o.policy == "none" && o.enforce:
		return fmt.Errorf("attest.policy=none contradicts attest=enforce: systemd goes on when it cannot load a policy")
	case o.policy == "none":
		o.policy = ""
	case !strings.HasPrefix(o.policy, "/"):
		return fmt.Errorf("attest.policy=%s: not an absolute path", o.policy)
	}
	return nil
}

func seconds(text string) (time.Duration, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	return time.Duration(n) * time.Second, err
}

// blanks are the bytes for which the kernel's isspace is true (lib/ctype.c). The last one may
// be the middle of a character.
const blanks = "\t\n\v\f\r \xa0"

// splitCmdline cuts at blanks outside of double quotes, which may surround a word or its
// value, as the kernel's next_arg does (lib/cmdline.c).
func splitCmdline(line string) []string {
	var words []string
	quoted, start := false, 0
	for i := range len(line) {
		switch c := line[i]; {
		case c == '"':
			quoted = !quoted
		case !quoted && strings.IndexByte(blanks, c) >= 0:
			words = append(words, line[start:i])
			start = i + 1
		}
	}
	words = slices.DeleteFunc(append(words, line[start:]), func(word string) bool { return word == "" })
	for i, word := range words {
		name, value, given := strings.Cut(strings.TrimPrefix(word, `"`), "=")
		words[i] = strings.TrimSuffix(name, `"`)
		if given {
			words[i] = name + "=" + strings.TrimSuffix(strings.TrimPrefix(value, `"`), `"`)
		}
	}
	return words
}
