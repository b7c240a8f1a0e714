package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kernelLog reads /dev/kmsg, a record at a time, and writes to the audit system.
type kernelLog struct {
	fd, audit int
	marks     int
}

func openLog() (*kernelLog, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	audit, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT)
	return &kernelLog{fd: fd, audit: audit}, err
}

func (l *kernelLog) close() {
	unix.Close(l.fd)
	unix.Close(l.audit)
}

// mark forgets what was written until now.
func (l *kernelLog) mark() error {
	_, err := unix.Seek(l.fd, 0, unix.SEEK_END)
	return err
}

// flush queues an audit record of ours. The kernel writes records to its log in their order, in
// its own time: once ours, whose text is returned, is there, so are all before it.
func (l *kernelLog) flush() (string, error) {
	l.marks++
	text := fmt.Sprintf("boottest-mark-%d-", l.marks)
	message := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+64)
	message = append(append(message, text...), 0)
	binary.NativeEndian.PutUint32(message, uint32(len(message)))
	binary.NativeEndian.PutUint16(message[4:], unix.AUDIT_USER_AVC) // taken even while auditing is off
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST)
	return text, unix.Sendto(l.audit, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// next returns one record, "" if there is none yet.
func (l *kernelLog) next() (string, error) {
	buf := make([]byte, 8192)
	n, err := unix.Read(l.fd, buf)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return "", nil
	case errors.Is(err, unix.EPIPE): // records were overwritten; go on with the oldest
		return l.next()
	case err != nil:
		return "", err
	}
	return string(buf[:n]), nil
}

// records are those of the types AUDIT_INTEGRITY_DATA, _METADATA and _STATUS.
var record = regexp.MustCompile(`audit: type=180[012] .* cause=(.*?) comm=\S+(?: name="([^"]*)")?`)

// patience is how long our own record may take.
const patience = 20 * time.Second

// each calls f with the records since the mark, until it comes to one of ours that is after them.
func (l *kernelLog) each(f func(text string)) error {
	last, err := l.flush()
	if err != nil {
		return fmt.Errorf("write audit record: %w", err)
	}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		text, err := l.next()
		switch {
		case err != nil:
			return err
		case text == "":
			time.Sleep(5 * time.Millisecond)
		case strings.Contains(text, last):
			return nil
		default:
			f(text)
		}
	}
	return errors.New("audit records do not reach the kernel's log")
}

// causes returns why the kernel refused something about one of the files named in args.
func (l *kernelLog) causes(args []string) ([]string, error) {
	var causes []string
	err := l.each(func(text string) {
		m := record.FindStringSubmatch(text)
		if m == nil || m[1] == "failed" || m[1] == "completed" || !concerns(m[2], args) || slices.Contains(causes, m[1]) {
			return // the kernel says, too, that it did not load a policy
		}
		causes = append(causes, m[1])
	})
	return causes, err
}

// concerns says whether a record is about a file of args, or of a folder that is named there.
// Records about metadata have the last part of the path only.
func concerns(name string, args []string) bool {
	if name == "" {
		return true
	}
	for _, arg := range args {
		_, path, ok := strings.Cut(arg, "/")
		path = "/" + path
		if ok && (name == path || strings.HasPrefix(name, path+"/") || strings.HasSuffix(path, "/"+name)) {
			return true
		}
	}
	return false
}

// inLog says whether the kernel's log has a text, since it started.
func inLog(text string) (bool, error) {
	f, err := openLog()
	if err != nil {
		return false, err
	}
	defer f.close()
	for {
		line, err := f.next()
		if err != nil || line == "" {
			return false, err
		}
		if strings.Contains(line, text) {
			return true, nil
		}
	}
}

// readText reads a file of /proc or /sys.
func readText(path string) (string, error) {
	text, err := os.ReadFile(path)
	return strings.TrimSpace(string(text)), err
}
