//go:build !cgo

package rootfs

func openLibc() (Labels, error) { return nil, ErrNoLibc }
