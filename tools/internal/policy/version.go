package policy

import (
	"fmt"
	"regexp"
	"strconv"
)

// Version is a release of Linux. The third number is left out: policies of 6.1.1 and
// 6.1.190 are the same.
type Version struct{ Major, Minor int }

// Versions whose grammar is known; all between them are, too.
var (
	Oldest = Version{4, 4}
	Newest = Version{7, 2}
)

var versionPattern = regexp.MustCompile(`^v?([0-9]{1,3})\.([0-9]{1,3})(?:[.+~-].*)?$`)

// ParseVersion reads "6.1", "6.1.192" or what uname -r prints. Versions before [Oldest]
// are errors. One after [Newest] is not: whether it has new words is not known.
func ParseVersion(s string) (Version, error) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return Version{}, fmt.Errorf("kernel version %q has not the form 6.1", s)
	}
	// Three digits each: no overflow.
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	v := Version{major, minor}
	if v.Before(Oldest) {
		return Version{}, fmt.Errorf("kernel version %v: policies of versions before %v are not known", v, Oldest)
	}
	return v, nil
}

// Before says whether v is older than w.
func (v Version) Before(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// lastMinor is the last release of each major version before the newest.
var lastMinor = map[int]int{4: 20, 5: 19, 6: 19}

// releases calls yield for the known versions, the oldest first.
func releases(yield func(Version) bool) {
	for v := Oldest; !Newest.Before(v); {
		if !yield(v) {
			return
		}
		if last, ok := lastMinor[v.Major]; ok && v.Minor == last {
			v = Version{v.Major + 1, 0}
		} else {
			v.Minor++
		}
	}
}

// OldestFor returns the oldest known kernel that takes a policy, and whether one does.
func OldestFor(text []byte) (Version, bool) {
	for v := range releases {
		if _, errs := parse(text, v); len(errs) == 0 {
			return v, true
		}
	}
	return Version{}, false
}
