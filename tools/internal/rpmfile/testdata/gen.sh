#!/bin/sh
# Made hello.rpm with rpmbuild of rpm 4.18.0 (Debian 12).
#   gen.sh            in this folder
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/hello.spec" <<'END'
Name: hello
Version: 1
Release: 1
Summary: hello
License: MIT
BuildArch: noarch
%description
hello
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/usr/share/hello
echo 'echo hello' > %{buildroot}/usr/bin/hello
ln -s hello %{buildroot}/usr/bin/hi
: > %{buildroot}/usr/share/hello/empty
%files
/usr/bin/*
/usr/share/hello
END
SOURCE_DATE_EPOCH=1700000000 rpmbuild --quiet -bb --define "_topdir $work" --define '_buildhost localhost' \
	--define '_binary_filedigest_algorithm 8' --define 'use_source_date_epoch_as_buildtime 1' \
	--define 'clamp_mtime_to_source_date_epoch 1' "$work/hello.spec"
cp "$work/RPMS/noarch/hello-1-1.noarch.rpm" hello.rpm
