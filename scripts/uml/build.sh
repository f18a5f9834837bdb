#!/bin/sh
# build.sh DIR: what a guest kernel needs, in DIR, from Debian's packages alone: the
# program that starts user-mode-linux, its modules, and libreswan, which conflicts with
# strongSwan as an installed package and is unpacked here instead. Does nothing where
# all is there. Exit status 3 and one line: something is not to be had on this machine.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:?usage: build.sh DIR}
missing() { echo "guest kernel: $1" >&2; exit 3; }

[ "$(uname -m)" = x86_64 ] || missing "user-mode-linux runs on x86_64 only"
for p in linux.uml busybox modprobe gcc; do
	command -v $p >/dev/null || missing "$p is not installed (scripts/deps.sh)"
done
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
sum=$(cat "$here/build.sh" "$here/shim.c" | sha256sum)
[ "$(cat "$dir/built" 2>/dev/null)" != "$sum" ] || exit 0
work=$(mktemp -d "$dir/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

gcc -O2 -shared -fPIC -o "$work/shim.so" "$here/shim.c"
mkdir -p "$work/modules/lib"
ln -s /usr/lib/uml/modules "$work/modules/lib/modules"
printf '#!/bin/sh\nexec /sbin/modprobe -d %s/modules "$@"\n' "$dir" >"$work/modprobe"
chmod 755 "$work/modprobe"

(cd "$work" && { apt-get download -q libreswan || { apt-get update -q && apt-get download -q libreswan; }; } >download.log 2>&1) ||
	missing "libreswan cannot be downloaded: $(tail -n 1 "$work/download.log")"
dpkg -x "$work"/libreswan_*.deb "$work/libreswan"
for part in shim.so modules modprobe libreswan; do
	rm -rf "${dir:?}/$part"
	mv "$work/$part" "$dir/"
done
echo "$sum" >"$dir/built"
