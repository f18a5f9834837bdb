#!/bin/sh
# Installs what tests and the demo need beside Go: the peer (strongSwan wholly in
# user space), the router (FRR), the independent decoder (tshark), the tools that
# build networks, and a guest kernel (user-mode-linux) with what libreswan needs beside
# its own package, which scripts/uml/build.sh unpacks.
# Debian and its relatives; anything else gets the list to install by hand.
set -eu

packages="
charon-systemd strongswan-swanctl strongswan-pki
libcharon-extra-plugins libcharon-extauth-plugins
libstrongswan-standard-plugins libstrongswan-extra-plugins
frr
tshark tcpdump iproute2 iputils-ping nftables ethtool iperf3
user-mode-linux busybox-static kmod gcc libc6-dev
libnss3-tools libldns3 libevent-pthreads-2.1-7
"

missing=""
for p in $packages; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "deps: no apt-get here; install by hand:$missing" >&2
	exit 2
fi
if [ "$(id -u)" != 0 ]; then
	echo "deps: root is needed to install:$missing" >&2
	exit 2
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends $missing || {
	apt-get update -q
	apt-get install -y -q --no-install-recommends $missing
}
