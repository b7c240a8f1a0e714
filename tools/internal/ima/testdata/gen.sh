#!/bin/sh
# gen.sh makes the vectors beside it with programs that are not ours, so that a mistake
# of ours cannot agree with itself. The committed ones were made with
#
#   EVMCTL     = evmctl 1.4 (Debian 12)    everything but sigv3
#   EVMCTL_NEW = evmctl 1.6.2              sigv3, and the second opinion
#   fsverity 1.5, openssl 3.0, attr 2.5.1 (Debian 12)
#
#   EVMCTL_NEW=PATH sh gen.sh    as root: it writes security.* attributes below TMPDIR
#
# Keys are new in each run and ECDSA is random, so every file changes: to add a case, add
# a line and commit what a whole run made. It stops when a good vector is refused, and
# says on standard error where evmctl and we differ: evmctl ignores the size field, and
# evmctl 1.4 takes SHA-1 of the key for the key id whatever the certificate says.
#
# A vector is lines "name: value", and "#" lines with the programs' opinions. Values of
# attributes, content, digests and salts are hexadecimal; a missing attribute has no line.
#
#   expect: ok           the kernel accepts it
#           weak         likewise, but the key has under 2048 bits or the hash is SHA-1 or MD5
#           changed      well-formed, but not a signature or digest of these bytes by this key
#           wrong-key    the key id is not the one of the certificate
#           malformed    not what this attribute can hold
#           not-portable in security.evm: bound to an inode, which no build host knows
#           no-ima       in security.evm: there is no security.ima to protect
#   sigv2   xattr (security.ima) over content, by cert
#   hash    xattr (security.ima) of content
#   evm     xattr (security.evm) over uid, gid, mode (octal, with the file type), layout
#           and the attributes selinux ... capability, by cert
#   verity  digest of the first size bytes of pattern. counter: the decimal numbers from
#           0, each with a newline
#   sigv3   xattr (security.ima) over an fs-verity digest, by cert
set -Ceu # C: no vector is made twice

EVMCTL=${EVMCTL-evmctl}
EVMCTL_NEW=${EVMCTL_NEW-$EVMCTL}
RSA="rsa1024 rsa2048 rsa3072 rsa4096"
EC="p256 p384 p521"
ATTRIBUTES="selinux smack smackexec smacktransmute smackmmap apparmor ima capability"

die() {
	echo "gen.sh: error: $*" >&2
	exit 1
}

tohex() { od -An -v -tx1 | tr -d ' \n'; }
tobin() { tr a-f A-F | basenc -d --base16; }

# flip HEX DIGIT BIT prints HEX with bit 0 or 3 of one hexadecimal digit flipped.
# Digits count from 0, or from the end when negative.
flip() {
	case $3 in
	0) to=1032547698badcfe ;;
	3) to=89abcdef01234567 ;;
	*) die "flip: bit $3" ;;
	esac
	printf '%s' "$1" | awk -v at="$2" -v to="$to" '{
		if (at < 0) at += length($0)
		digit = index("0123456789abcdef", substr($0, at + 1, 1))
		printf "%s%s%s", substr($0, 1, at), substr(to, digit, 1), substr($0, at + 2)
	}'
}

# splice HEX OFFSET BYTES prints HEX with BYTES written over it at byte OFFSET.
splice() {
	printf '%s' "$1" | awk -v at="$(($2 * 2))" -v new="$3" '{
		printf "%s%s%s", substr($0, 1, at), new, substr($0, at + length(new) + 1)
	}'
}

# cut_to HEX BYTES prints the first BYTES bytes.
cut_to() { printf '%s' "$1" | awk -v n="$(($2 * 2))" '{ printf "%s", substr($0, 1, n) }'; }

opinion() { # PROGRAM STATUS EXPECT NAME
	verdict=refused
	[ "$2" -ne 0 ] || verdict=ok
	[ "$2" -lt 128 ] || verdict=crashed
	echo "# $($1 --version 2>&1): $verdict"
	case $3:$verdict in
	ok:ok | weak:ok) ;;
	ok:* | weak:*)
		[ "$1" != "$EVMCTL_NEW" ] || die "$4: $1 refuses it"
		echo "$4: $1 refuses it" >&2
		;;
	*:refused) ;;
	*) echo "$4: $1: $verdict, and we expect $3" >&2 ;;
	esac
}

evmctls() { printf '%s\n' "$EVMCTL" "$EVMCTL_NEW" | uniq; } # one line if they are the same

# --- keys ------------------------------------------------------------------------

certificate() { # NAME SKID KEY
	cat >|"$work/req.cnf" <<-END
		[req]
		distinguished_name = subject
		x509_extensions = leaf
		prompt = no
		[subject]
		CN = TEST $1
		[leaf]
		basicConstraints = critical, CA:FALSE
		keyUsage = critical, digitalSignature
		subjectKeyIdentifier = $2
	END
	openssl req -x509 -new -sha256 -days 36500 -config "$work/req.cnf" -key "$3" -out "keys/$1.crt"
	openssl x509 -in "keys/$1.crt" -outform DER -out "$work/$1.der"
	openssl x509 -in "keys/$1.crt" -noout -pubkey >|"$work/$1.pub"
}

make_keys() {
	for key in $RSA; do
		openssl genpkey -algorithm RSA -pkeyopt "rsa_keygen_bits:${key#rsa}" -out "$work/$key.key" 2>/dev/null
	done
	for key in $EC; do
		openssl genpkey -algorithm EC -pkeyopt "ec_paramgen_curve:P-${key#p}" -out "$work/$key.key" 2>/dev/null
	done
	for key in $RSA $EC; do
		certificate "$key" hash "$work/$key.key"
	done
	# Not SHA-1 of the key, as openssl and old evmctl assume, and not 20 bytes.
	certificate rsa2048-skid8 a1:a2:a3:a4:a5:a6:a7:a8 "$work/rsa2048.key"
	certificate p256-skid8 b1:b2:b3:b4:b5:b6:b7:b8 "$work/p256.key"
	cp "$work/rsa2048.key" "$work/p256.key" keys/
}

# --- security.ima: signatures of content -------------------------------------------

sigv2_opinions() { # NAME EXPECT CERT CONTENT XATTR
	printf '%s' "$4" | tobin >|"$work/f"
	printf '%s' "$5" | tobin >|"$work/f.sig"
	evmctls | while read -r program; do
		status=0
		$program ima_verify --sigfile --key "$work/$3.der" "$work/f" >/dev/null 2>&1 || status=$?
		opinion "$program" "$status" "$2" "sigv2/$1"
	done
}

sigv2() { # NAME EXPECT CERT CONTENT XATTR [HASH]
	sigv2_opinions "$1" "$2" "$3" "$4" "$5" >"sigv2/$1"
	{
		echo "expect: $2"
		echo "content: $4"
		echo "xattr: $5"
		echo "cert: $3.crt"
		echo "hash: ${6-sha256}"
	} >>"sigv2/$1"
	case $2 in ok | weak) ;; *) return 0 ;; esac
	printf '%s' "$5" | tobin | tail -c +10 >|"$work/sig"
	openssl dgst "-${6-sha256}" -verify "$work/$3.pub" -signature "$work/sig" "$work/f" >/dev/null ||
		die "sigv2/$1: openssl refuses it"
}

sign_content() { # KEY CERT HASH CONTENT
	printf '%s' "$4" | tobin >|"$work/f"
	"$EVMCTL" ima_sign -n --hashalgo "$3" --key "$work/$1.key" --keyid-from-cert "keys/$2.crt" "$work/f" 2>/dev/null
}

make_sigv2() {
	for key in $RSA $EC; do
		expect=ok
		[ "$key" != rsa1024 ] || expect=weak
		for hash in sha256 sha384 sha512; do
			sigv2 "$key-$hash" "$expect" "$key" "$hello" "$(sign_content "$key" "$key" "$hash" "$hello")" "$hash"
		done
	done
	sigv2 rsa2048-sha1 weak rsa2048 "$hello" "$(sign_content rsa2048 rsa2048 sha1 "$hello")" sha1
	for key in rsa2048 p256; do
		sigv2 "$key-empty" ok "$key" "" "$(sign_content "$key" "$key" sha256 "")"
		sigv2 "$key-skid8" ok "$key-skid8" "$hello" "$(sign_content "$key" "$key-skid8" sha256 "$hello")"
		good=$(sign_content "$key" "$key" sha256 "$hello")
		bad_sigv2 "$key" "$good"
		sigv2 "$key-content" changed "$key" "$(flip "$hello" 1 0)" "$good"
		sigv2 "$key-certificate" wrong-key p384 "$hello" "$good"
		sigv2 "$key-forged-keyid" changed p384 "$hello" "$(sign_content "$key" p384 sha256 "$hello")"
	done
}

# bad_sigv2 KEY XATTR changes one thing of the attribute at a time.
bad_sigv2() {
	altered() { sigv2 "$1-$2" "$3" "$1" "$hello" "$4"; }
	size=$(cut_to "$2" 9 | cut -c 15-18)
	longer=$(printf %04x $((0x$size + 1)))
	altered "$1" algo changed "$(splice "$2" 2 06)"
	altered "$1" algo-unknown malformed "$(splice "$2" 2 40)"
	altered "$1" keyid wrong-key "$(flip "$2" 13 0)"
	altered "$1" size-longer malformed "$(splice "$2" 7 "$longer")"
	altered "$1" size-shorter malformed "$(splice "$2" 7 "$(printf %04x $((0x$size - 1)))")"
	altered "$1" size-zero malformed "$(splice "$2" 7 0000)"
	altered "$1" first-bit changed "$(flip "$2" 18 3)"
	altered "$1" last-bit changed "$(flip "$2" -1 0)"
	altered "$1" trailing malformed "${2}00"
	altered "$1" padded changed "$(splice "$2" 7 "$longer")00"
	altered "$1" nothing malformed ""
	altered "$1" header-1 malformed "$(cut_to "$2" 1)"
	altered "$1" header-8 malformed "$(cut_to "$2" 8)"
	altered "$1" header-9 malformed "$(cut_to "$2" 9)"
	altered "$1" header-only malformed "$(splice "$(cut_to "$2" 9)" 7 0000)"
	altered "$1" truncated malformed "$(cut_to "$2" $((${#2} / 2 - 1)))"
	altered "$1" version-1 malformed "$(splice "$2" 1 01)"
	altered "$1" version-3 changed "$(splice "$2" 1 03)"
	altered "$1" version-4 malformed "$(splice "$2" 1 04)"
	altered "$1" type-hmac malformed "$(splice "$2" 0 02)"
	altered "$1" type-portable malformed "$(splice "$2" 0 05)"
	altered "$1" type-verity malformed "$(splice "$2" 0 06)"
	altered "$1" type-unknown malformed "$(splice "$2" 0 07)"
}

# --- security.ima: digests -----------------------------------------------------------

hashed() { # NAME EXPECT CONTENT XATTR HASH
	{
		echo "# made by $("$EVMCTL" --version)"
		echo "expect: $2"
		echo "content: $3"
		echo "xattr: $4"
		echo "hash: $5"
	} >"hash/$1"
	case $2 in ok | weak) ;; *) return 0 ;; esac
	case $4 in
	*"$(printf '%s' "$3" | tobin | openssl dgst "-$5" -r | sed 's/ .*//')") ;;
	*) die "hash/$1: openssl has another digest" ;;
	esac
}

make_hash() {
	printf '%s' "$hello" | tobin >|"$work/f"
	: >|"$work/empty"
	for hash in md5 sha1 sha224 sha256 sha384 sha512; do
		expect=ok
		case $hash in md5 | sha1) expect=weak ;; esac
		hashed "$hash" "$expect" "$hello" "$("$EVMCTL" ima_hash -n -a "$hash" "$work/f" 2>/dev/null)" "$hash"
		hashed "$hash-empty" "$expect" "" "$("$EVMCTL" ima_hash -n -a "$hash" "$work/empty" 2>/dev/null)" "$hash"
	done
	good=$("$EVMCTL" ima_hash -n -a sha256 "$work/f" 2>/dev/null)
	hashed sha256-content changed "$(flip "$hello" 1 0)" "$good" sha256
	hashed sha256-first-bit changed "$hello" "$(flip "$good" 4 3)" sha256
	hashed sha256-last-bit changed "$hello" "$(flip "$good" -1 0)" sha256
	hashed sha256-algo changed "$hello" "$(splice "$good" 1 14)" sha3-256
	hashed sha256-algo-longer malformed "$hello" "$(splice "$good" 1 06)" sha256
	hashed sha256-algo-unknown malformed "$hello" "$(splice "$good" 1 40)" sha256
	hashed sha256-truncated malformed "$hello" "$(cut_to "$good" 33)" sha256
	hashed sha256-trailing malformed "$hello" "${good}00" sha256
	hashed sha256-legacy-type malformed "$hello" "$(splice "$good" 0 01)" sha256
}

# --- security.evm ----------------------------------------------------------------------

# The variables uid, gid, mode, layout, cert, hash, evm and one for each of ATTRIBUTES
# hold the case at hand.

value() { eval "printf %s \"\$$1\""; }

# assign sets variables from words NAME=VALUE.
assign() {
	for word in "$@"; do
		eval "${word%%=*}=\${word#*=}"
	done
}

# shellcheck disable=SC2034 # value reads them
no_attributes() { selinux='' smack='' smackexec='' smacktransmute='' smackmmap='' apparmor='' ima='' capability=''; }

attribute() {
	case $1 in
	smack*) printf 'security.SMACK64%s' "$(printf '%s' "${1#smack}" | tr '[:lower:]' '[:upper:]')" ;;
	*) printf 'security.%s' "$1" ;;
	esac
}

# evm_file makes the file that the variables describe. Attributes come last, because
# chown drops security.capability.
evm_file() {
	rm -f "$work/f"
	printf '%s' "$hello" | tobin >|"$work/f"
	chown "$uid:$gid" "$work/f"
	chmod "${mode#010}" "$work/f"
	for a in $ATTRIBUTES; do
		v=$(value "$a")
		[ -z "$v" ] || setfattr -n "$(attribute "$a")" -v "0x$v" "$work/f"
	done
}

# evm_options prints what evmctl must be told: it leaves the extra attributes of Smack
# out unless asked, the kernel never does.
evm_options() {
	echo "--m${layout%le}"
	[ -z "$smackexec$smacktransmute$smackmmap" ] || echo --smack
}

evm_sign() { # KEY --imahash|--imasig
	evm_file
	# shellcheck disable=SC2046 # options are words
	"$EVMCTL" sign "$2" --portable --hashalgo "$hash" --key "$work/$1.key" \
		--keyid-from-cert "keys/$cert.crt" $(evm_options) "$work/f" >/dev/null 2>&1
	ima=$(getfattr --absolute-names --only-values -n security.ima "$work/f" | tohex)
	evm=$(getfattr --absolute-names --only-values -n security.evm "$work/f" | tohex)
}

evm_opinions() { # NAME EXPECT
	evm_file
	setfattr -n security.evm -v "0x$evm" "$work/f"
	evmctls | while read -r program; do
		status=0
		# shellcheck disable=SC2046 # options are words
		$program verify --key "$work/$cert.der" $(evm_options) "$work/f" >/dev/null 2>&1 || status=$?
		opinion "$program" "$status" "$2" "evm/$1"
	done
}

evm() { # NAME EXPECT
	evm_opinions "$1" "$2" >"evm/$1"
	{
		echo "expect: $2"
		echo "xattr: $evm"
		echo "cert: $cert.crt"
		for name in hash uid gid mode layout $ATTRIBUTES; do
			v=$(value "$name")
			[ -z "$v" ] || echo "$name: $v"
		done
	} >>"evm/$1"
}

# signed NAME EXPECT KEY --imahash|--imasig NAME=VALUE... signs a file without
# attributes, apart from those named.
signed() (
	name=$1 expect=$2 key=$3 how=$4 cert=$3
	shift 4
	no_attributes
	assign "$@"
	evm_sign "$key" "$how"
	evm "$name" "$expect"
)

make_evm() {
	uid=0 gid=0 mode=0100644 layout=64le hash=sha256
	signed rsa1024-sha256 weak rsa1024 --imahash
	for key in rsa2048 rsa3072 rsa4096 $EC; do
		signed "$key-sha256" ok "$key" --imahash
	done
	for key in rsa2048 p256; do
		for h in sha384 sha512; do
			signed "$key-$h" ok "$key" --imahash "hash=$h"
		done
		signed "$key-imasig" ok "$key" --imasig
		signed "$key-skid8" ok "$key" --imahash "cert=$key-skid8"
		signed "$key-32le" ok "$key" --imahash layout=32le
		for word in "$label" "$domain" "$profile" "$capabilities"; do
			signed "$key-with-${word%%=*}" ok "$key" --imahash "$word"
		done
		for layout in 32le 64le; do
			signed "$key-all-smack-$layout" ok "$key" --imasig "$label" "$domain" "$profile" "$capabilities" \
				smackexec=45786563 smacktransmute=54525545 smackmmap=4d6d6170 \
				uid=4000000000 gid=65534 mode=0106711
		done
		bad_evm "$key"
	done
}

# bad_evm KEY changes one thing at a time of a file that any module could have labelled.
bad_evm() (
	cert=$1 uid=1000 gid=1001 mode=0100755
	no_attributes
	assign "$label" "$domain" "$profile" "$capabilities"
	evm_sign "$1" --imahash
	evm "$1-all" ok
	bad "$1-uid" changed uid=1001
	bad "$1-gid" changed gid=1000
	bad "$1-uid-gid-swapped" changed uid=1001 gid=1000
	bad "$1-mode" changed mode=0100754
	bad "$1-setuid" changed mode=0104755
	bad "$1-layout" changed layout=32le
	bad "$1-capability" changed "capability=$(flip "$capability" 10 0)"
	bad "$1-capability-removed" changed capability=
	bad "$1-selinux" changed "selinux=$(flip "$selinux" 1 0)"
	bad "$1-selinux-nul" changed "selinux=${selinux%00}"
	bad "$1-smackexec-added" changed "smackexec=$smack"
	bad "$1-apparmor-removed" changed apparmor=
	bad "$1-order" changed "selinux=$smack" "smack=$selinux"
	bad "$1-ima" changed "ima=$(flip "$ima" -1 0)"
	bad "$1-ima-removed" no-ima ima=
	bad "$1-algo" changed hash=sha512 "evm=$(splice "$evm" 2 06)"
	bad "$1-algo-unknown" malformed "evm=$(splice "$evm" 2 40)"
	bad "$1-keyid" wrong-key "evm=$(flip "$evm" 13 0)"
	bad "$1-certificate" wrong-key cert=p384
	bad "$1-size" malformed "evm=$(splice "$evm" 7 0000)"
	bad "$1-first-bit" changed "evm=$(flip "$evm" 18 3)"
	bad "$1-last-bit" changed "evm=$(flip "$evm" -1 0)"
	bad "$1-trailing" malformed "evm=${evm}00"
	bad "$1-header" malformed "evm=$(cut_to "$evm" 9)"
	bad "$1-version-1" malformed "evm=$(splice "$evm" 1 01)"
	bad "$1-version-3" changed "evm=$(splice "$evm" 1 03)"
	bad "$1-type-inode" not-portable "evm=$(splice "$evm" 0 03)"
	bad "$1-type-digest" malformed "evm=$(splice "$evm" 0 04)"
)

bad() ( # NAME EXPECT NAME=VALUE...
	name=$1 expect=$2
	shift 2
	assign "$@"
	evm "$name" "$expect"
)

# --- fs-verity -------------------------------------------------------------------------

verity() { # SIZE HASH BLOCK [SALT]
	set -- "$1" "$2" "$3" "${4-}"
	name=$2-$3-$1${4:+-salt$((${#4} / 2))}
	head -c "$1" "$work/counter" >|"$work/content"
	digest=$(fsverity digest --compact "--hash-alg=$2" "--block-size=$3" ${4:+"--salt=$4"} "$work/content")
	{
		echo "# $(fsverity --version)"
		echo "expect: ok"
		echo "pattern: counter"
		echo "size: $1"
		echo "hash: $2"
		echo "block-size: $3"
		[ -z "$4" ] || echo "salt: $4"
		echo "digest: $digest"
	} >"verity/$name"
}

make_verity() {
	seq 0 199999 >|"$work/counter"
	for hash in sha256 sha512; do
		for block in 1024 4096; do
			full=$((block * block * 8 / ${hash#sha})) # one block of digests covers it
			for size in $(printf '%s\n' 0 1 4095 4096 4097 $full $((full + 1)) 524288 524289 1048579 | sort -nu); do
				verity "$size" "$hash" "$block"
			done
			for salt in 01 736f6d652073616c74 000102030405060708090a0b0c0d0e0f \
				00112233445566778899aabbccddeeff0123456789abcdef0123456789abcd00; do
				verity 0 "$hash" "$block" "$salt"
				verity 4097 "$hash" "$block" "$salt"
				verity 1048579 "$hash" "$block" "$salt"
			done
		done
	done
}

# sigv3 NAME EXPECT CERT HASH DIGEST XATTR. evmctl verifies these in a measurement list
# only, so openssl is the judge: what is signed is the hash of struct ima_file_id.
sigv3() {
	{
		echo "# made by $("$EVMCTL_NEW" --version)"
		echo "expect: $2"
		echo "hash: $4"
		echo "digest: $5"
		echo "xattr: $6"
		echo "cert: $3.crt"
	} >"sigv3/$1"
	[ "$2" = ok ] || return 0
	printf '%s' "$6" | tobin | tail -c +10 >|"$work/sig"
	{ printf '06%s' "$(cut_to "$6" 3 | cut -c 5-6)" && printf '%s' "$5"; } | tobin >|"$work/file_id"
	openssl dgst "-$4" -verify "$work/$3.pub" -signature "$work/sig" "$work/file_id" >/dev/null ||
		die "sigv3/$1: openssl refuses it"
}

make_sigv3() {
	head -c 4097 "$work/counter" >|"$work/content"
	for key in rsa2048 p256; do
		for hash in sha512 sha256; do # sha256 last: the bad ones below start from it
			line=$(fsverity digest "--hash-alg=$hash" "$work/content")
			digest=$(echo "$line" | sed 's/^[^:]*://; s/ .*//')
			good=$(echo "$line" | "$EVMCTL_NEW" sign_hash --veritysig --key "$work/$key.key" \
				--keyid-from-cert "keys/$key.crt" 2>/dev/null | sed 's/.* //')
			sigv3 "$key-$hash" ok "$key" "$hash" "$digest" "$good"
		done
		sigv3 "$key-digest" changed "$key" sha256 "$(flip "$digest" -1 0)" "$good"
		sigv3 "$key-last-bit" changed "$key" sha256 "$digest" "$(flip "$good" -1 0)"
		sigv3 "$key-algo" changed "$key" sha256 "$digest" "$(splice "$good" 2 14)"
		sigv3 "$key-keyid" wrong-key "$key" sha256 "$digest" "$(flip "$good" 13 0)"
		sigv3 "$key-certificate" wrong-key p384 sha256 "$digest" "$good"
		sigv3 "$key-version-2" malformed "$key" sha256 "$digest" "$(splice "$good" 1 02)"
		sigv3 "$key-type-content" changed "$key" sha256 "$digest" "$(splice "$good" 0 03)"
		sigv3 "$key-size" malformed "$key" sha256 "$digest" "$(splice "$good" 7 0000)"
		sigv3 "$key-trailing" malformed "$key" sha256 "$digest" "${good}00"
	done
}

cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for set in keys sigv2 hash evm verity sigv3; do
	rm -rf "$set"
	mkdir "$set"
done
hello=$(printf 'hello ima\n' | tohex)
label=selinux=$(printf 'system_u:object_r:bin_t:s0\0' | tohex) # with its NUL, as libselinux stores it
domain=smack=$(printf 'System' | tohex)
profile=apparmor=$(printf 'unconfined' | tohex)
capabilities=capability=0100000200200000000000000000000000000000 # cap_net_raw=ep
make_keys
make_sigv2
make_hash
make_evm
make_verity
make_sigv3
