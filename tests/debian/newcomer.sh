#!/bin/sh
# What tests/debian/newcomer does in a bare Debian. /root/said has the lines to type.
set -u

examples=/usr/local/share/doc/libgmem/examples

# claim CLAIM COMMAND... : "ok" or "not ok"; what it printed is shown only if it fails
claim() {
	claim=$1
	shift
	if "$@" >/tmp/log 2>&1; then
		echo "ok $claim"
	else
		echo "not ok $claim"
		tail -n 30 /tmp/log
	fi
}

type_lines() {
	sh -euc "$(cat "/root/said/$1")"
}

# Skips are no failures: KVM, or guest_memfd, may be missing.
run() {
	"$@"
	status=$?
	[ "$status" = 0 ] || [ "$status" = 77 ]
}

says() {
	text=$1
	shift
	"$@" | tee /dev/stderr | grep -q "$text"
}

refuses() {
	"$@" >/dev/null
	[ "$?" = 2 ]
}

mkdir /tmp/vmm
cp /root/libgmem/tests/abi/consumer.c /tmp/vmm/vmm.c
cd /root/libgmem || exit
install() {
	type_lines install >/tmp/installed 2>&1 || { cat /tmp/installed; return 1; }
}
claim "the lines of the README install it" install
claim "and warn of nothing" sh -c '! grep WARNING /tmp/installed'
claim "no tests were built" sh -c '! ls -d build/tests 2>/dev/null'
cd /tmp/vmm || exit
claim "a program is built as the README says" type_lines use
claim "and runs" ./a.out
claim "gmem-probe is found and runs" says "^gmem-probe 0" gmem-probe --version
claim "the loader's cache has it" sh -c 'ldconfig -p | grep -q /usr/local/lib/libgmem.so.0'

cd "$examples" || exit
for source in *.c; do
	name=${source%.c}
	sed "s/hello-guest/$name/g" /root/said/example >/root/said/this-example
	claim "the line of examples/README.md builds $name" type_lines this-example
	claim "$name runs, or says why not" run "./$name"
	claim "$name has --help" says "^usage: $name" "./$name" --help
	claim "$name refuses arguments that it does not know" refuses "./$name" --zzz
done

cd /root/libgmem || exit
cp /tmp/vmm/vmm.c .
claim "an installation is staged as the README says, and used" type_lines stage
claim "what was staged runs" env LD_LIBRARY_PATH=/tmp/stage/usr/local/lib ./a.out

meson setup --prefix=/opt/gmem other >/tmp/setup 2>&1
meson install -C other >/tmp/installed 2>&1
claim "a prefix where nobody looks is warned of" grep "does not search /opt/gmem/lib" /tmp/setup
claim "and what the warning says is enough" sh -euc "
	rm -r /usr/local/lib/libgmem* /usr/local/lib/pkgconfig/libgmem.pc
	ldconfig
	$(sed -n 's/^ *export /export /p' /tmp/setup)
	cc vmm.c -o other-vmm \$(pkg-config --cflags --libs libgmem)
	./other-vmm"
echo "done"
