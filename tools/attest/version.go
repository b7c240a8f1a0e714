package main

import "runtime/debug"

// release is the version that a packager gives: -ldflags "-X main.release=1.0".
var release string

// version is the release, or the module's version as the Go toolchain recorded it.
func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
