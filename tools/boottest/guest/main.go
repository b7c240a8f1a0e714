// Guest is the init of the machines that the boot test starts. It tries what /plan lists, a
// case a line, "NAME<TAB>VERB<TAB>ARGUMENT...", and writes "NAME<TAB>RESULT" to the second
// serial port: what the kernel returned, and for a refusal the causes in its audit records.
package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The serial port, where nothing else writes.
const resultsPath = "/dev/ttyS1"

func main() {
	if err := run(); err != nil {
		fmt.Println("guest: error:", err)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	results, err := os.OpenFile(resultsPath, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	plan, err := os.ReadFile("/plan")
	if err != nil {
		return err
	}
	// Else the kernel drops records when many come at once.
	if err := os.WriteFile("/proc/sys/kernel/printk_ratelimit", []byte("0"), 0); err != nil {
		return err
	}
	log, err := openLog()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(plan)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) < 2 {
			return fmt.Errorf("plan: %q has no verb", line)
		}
		if err := log.mark(); err != nil {
			return err
		}
		result := try(f[1], f[2:])
		if result.refused {
			causes, err := log.causes(f[2:])
			if err != nil {
				return err
			}
			result.text = strings.Join(append([]string{result.text}, causes...), " ")
		}
		if _, err := fmt.Fprintf(results, "%s\t%s\n", f[0], result.text); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(results, "end\tok\n")
	return err
}
