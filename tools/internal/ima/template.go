package ima

import (
	"fmt"
	"strings"
)

// field is a field of a measurement's template data: supported_fields[] of
// security/integrity/ima/ima_template.c.
type field uint8

const (
	fieldD field = iota // the order is fieldNames'
	fieldN
	fieldDNG
	fieldDNGv2
	fieldNNG
	fieldSig
	fieldBuf
	fieldDModsig
	fieldModsig
	fieldEVMSig
	fieldIUID
	fieldIGID
	fieldIMode
	fieldXattrNames
	fieldXattrLengths
	fieldXattrValues
)

var fieldNames = [...]string{
	"d", "n", "d-ng", "d-ngv2", "n-ng", "sig", "buf", "d-modsig", "modsig", "evmsig",
	"iuid", "igid", "imode", "xattrnames", "xattrlengths", "xattrvalues",
}

func (f field) String() string { return fieldNames[f] }

// Limits of Linux on a custom format (IMA_TEMPLATE_NUM_FIELDS_MAX and
// IMA_TEMPLATE_FIELD_ID_MAX_LEN of security/integrity/ima/ima.h).
const (
	maxFields       = 15
	maxTemplateName = maxFields * (16 + 1)
)

// Template says which fields a measurement holds, in which order.
//
// The name of a template is not part of what Linux hashes: whoever sends a list can write
// "ima-buf" over "ima-sig". What follows from a name must therefore hold for the fields too.
// [ParseTemplate] and [ListReader] see to it that every entry has a path and a
// digest under whatever name, and that a buffer is what the digest was made of.
type Template struct {
	Name   string // "ima-sig", or the format itself of a custom one
	fields []field
	inode  bool // it has every field of a file's metadata
}

// legacy says whether t is the template whose data carries no lengths and whose name is
// hashed as 256 bytes. A custom format "d|n" is another template.
func (t *Template) legacy() bool { return t.Name == "ima" }

// builtinTemplates is builtin_templates[] of security/integrity/ima/ima_template.c.
var builtinTemplates = map[string]*Template{
	"ima":        {Name: "ima", fields: []field{fieldD, fieldN}},
	"ima-ng":     {Name: "ima-ng", fields: []field{fieldDNG, fieldNNG}},
	"ima-sig":    {Name: "ima-sig", fields: []field{fieldDNG, fieldNNG, fieldSig}},
	"ima-ngv2":   {Name: "ima-ngv2", fields: []field{fieldDNGv2, fieldNNG}},
	"ima-sigv2":  {Name: "ima-sigv2", fields: []field{fieldDNGv2, fieldNNG, fieldSig}},
	"ima-buf":    {Name: "ima-buf", fields: []field{fieldDNG, fieldNNG, fieldBuf}},
	"ima-modsig": {Name: "ima-modsig", fields: []field{fieldDNG, fieldNNG, fieldSig, fieldDModsig, fieldModsig}},
	"evm-sig": {Name: "evm-sig", inode: true, fields: []field{fieldDNG, fieldNNG, fieldEVMSig,
		fieldXattrNames, fieldXattrLengths, fieldXattrValues, fieldIUID, fieldIGID, fieldIMode}},
}

// ParseTemplate returns the template of a name that Linux has built in, or of a list of
// fields as ima_template_fmt= takes it ("d-ng|n-ng|iuid"). A format without exactly one
// digest and one name of the file is refused, although Linux takes it: with it, a
// measurement could be passed off as one of nothing.
func ParseTemplate(name string) (*Template, error) {
	if t, ok := builtinTemplates[name]; ok {
		return t, nil
	}
	return parseFormat(name)
}

func parseFormat(format string) (*Template, error) {
	ids := strings.Split(format, "|")
	if len(ids) > maxFields {
		return nil, fmt.Errorf("template %.40q has %d fields; Linux takes %d", format, len(ids), maxFields)
	}
	t := &Template{Name: strings.Clone(format)}
	var seen [len(fieldNames)]bool
	for _, id := range ids {
		f, ok := fieldByName(id)
		if !ok {
			return nil, fmt.Errorf("template %.40q has an unknown field %.20q", format, id)
		}
		if seen[f] {
			return nil, fmt.Errorf("template %q has two fields %s", format, id)
		}
		seen[f] = true
		t.fields = append(t.fields, f)
	}
	t.inode = count(seen[fieldIUID], seen[fieldIGID], seen[fieldIMode],
		seen[fieldXattrNames], seen[fieldXattrLengths], seen[fieldXattrValues]) == 6
	if n := count(seen[fieldD], seen[fieldDNG], seen[fieldDNGv2]); n != 1 {
		return nil, fmt.Errorf("template %q has %d digests of the file, not one", format, n)
	}
	if n := count(seen[fieldN], seen[fieldNNG]); n != 1 {
		return nil, fmt.Errorf("template %q has %d names of the file, not one", format, n)
	}
	return t, nil
}

func fieldByName(id string) (field, bool) {
	for i, name := range fieldNames {
		if id == name {
			return field(i), true
		}
	}
	return 0, false
}

func count(flags ...bool) (n int) {
	for _, f := range flags {
		if f {
			n++
		}
	}
	return n
}
