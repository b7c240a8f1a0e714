package appraise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
)

func (o *object) delim(want json.Delim) error {
	t, err := o.d.Token()
	if err != nil {
		return unexpected(err)
	}
	if t != want {
		return fmt.Errorf("%.40v stands where %v is wanted", t, want)
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// each calls do for each member of an object, whose value do has to read.
func (o *object) each(do func(name string) error) error {
	if err := o.delim('{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for o.d.More() {
		name, err := o.text()
		if err != nil {
			return err
		}
		if seen[name] {
			return fmt.Errorf("member %.200q stands twice", name)
		}
		seen[name] = true
		if err := do(name); err != nil {
			return err
		}
	}
	return o.delim('}')
}

// members reads an object that has just these members.
func (o *object) members(names []string, do func(name string) error) error {
	return o.some(names, nil, do)
}

// some reads an object that has all of names and may have those of optional.
func (o *object) some(names, optional []string, do func(name string) error) error {
	missing := slices.Clone(names)
	err := o.each(func(name string) error {
		i := slices.Index(missing, name)
		if i < 0 && !slices.Contains(optional, name) {
			return fmt.Errorf("unknown member %.40q", name)
		}
		if i >= 0 {
			missing = slices.Delete(missing, i, i+1)
		}
		if err := do(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("member %q is missing", missing[0])
	}
	return err
}

func (o *object) array(do func() error) error {
	if err := o.delim('['); err != nil {
		return err
	}
	for o.d.More() {
		if err := do(); err != nil {
			return err
		}
	}
	return o.delim(']')
}

func (o *object) text() (string, error) {
	t, err := o.d.Token()
	if err != nil {
		return "", unexpected(err)
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("%.40v stands where a string is wanted", t)
	}
	return s, nil
}

// oneOrMore reads a string or an array of them.
func (o *object) oneOrMore(do func(string) error) error {
	t, err := o.d.Token()
	if err != nil {
		return unexpected(err)
	}
	if s, ok := t.(string); ok {
		return do(s)
	}
	if t != json.Delim('[') {
		return fmt.Errorf("%.40v stands where a string or an array is wanted", t)
	}
	n := 0
	for ; o.d.More(); n++ {
		s, err := o.text()
		if err == nil {
			err = do(s)
		}
		if err != nil {
			return err
		}
	}
	if n == 0 {
		return errors.New("an array is empty")
	}
	return o.delim(']')
}

func (o *object) integer() (uint64, error) {
	t, err := o.d.Token()
	if err != nil {
		return 0, unexpected(err)
	}
	n, ok := t.(json.Number)
	if !ok {
		return 0, fmt.Errorf("%.40v stands where a number is wanted", t)
	}
	v, err := strconv.ParseUint(n.String(), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%.40v is not a number from 0", n)
	}
	return v, nil
}

func (o *object) null(name string) error {
	t, err := o.d.Token()
	if err != nil {
		return unexpected(err)
	}
	if t != nil {
		return fmt.Errorf("%s is not null, which Keylime's schema demands", name)
	}
	return nil
}

// end sees to it that nothing follows.
func (o *object) end() error {
	if _, err := o.d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the policy")
	}
	return nil
}
