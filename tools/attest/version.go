package main

import "runtime/debug"

// packaged is the version that a packager gives: -ldflags "-X main.packaged=1.0".
var packaged string

// version is the packager's, or the module's version as the Go toolchain recorded it.
func version() string {
	if packaged != "" {
		return packaged
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
