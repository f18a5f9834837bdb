#!/usr/bin/env bash
# Plants one bug after the other into a copy of the production code and counts how
# many schedules the simulation needs to find it. A bug counts as found at a seed
# only if the same seed violates nothing without it. Ends with status 1 when a bug is
# not found, when a patch no longer applies, or when a seed violates a rule without
# any bug. internal/sim/planted/README.md says what each patch does.
set -euo pipefail

usage() {
	cat <<'TEXT'
usage: scripts/planted.sh [--limit N] [--from SEED] [--workers N] [--patches DIR] [--check] [BUG...]

  --limit N      give a bug up after N schedules (5000)
  --from SEED    begin with this seed (0)
  --workers N    schedules at a time (as many as GOMAXPROCS)
  --patches DIR  where the patches are (internal/sim/planted)
  --check        only see whether every patch applies
  BUG            names of patches, without .patch (all)
TEXT
}

root=$(cd "$(dirname "$0")/.." && pwd)
limit=5000 first=0 workers="" check="" bugs=() patches=$root/internal/sim/planted
while [ $# -gt 0 ]; do
	case $1 in
	--limit) limit=$2; shift ;;
	--from) first=$2; shift ;;
	--workers) workers=$2; shift ;;
	--patches) patches=$(cd "$2" && pwd); shift ;;
	--check) check=1 ;;
	-h | --help) usage; exit 0 ;;
	-*) usage >&2; exit 2 ;;
	*) bugs+=("$1") ;;
	esac
	shift
done
: "${GO:=go}"

if [ ${#bugs[@]} -eq 0 ]; then
	for p in "$patches"/*.patch; do bugs+=("$(basename "$p" .patch)"); done
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Outside of every repository, or git apply would look for the files there.
export GIT_CEILING_DIRECTORIES=$work CGO_ENABLED=0

# The Go files as they are in the working tree.
mkdir "$work/clean"
(cd "$root" && git ls-files -z --cached --others --exclude-standard -- '*.go' go.mod go.sum |
	while IFS= read -r -d '' f; do if [ -e "$f" ]; then printf '%s\0' "$f"; fi; done |
	tar --null -T - -cf -) | tar -xf - -C "$work/clean"

# plant BUG: a copy with the bug in it, in $work/tree.
plant() {
	rm -rf "$work/tree"
	cp -r "$work/clean" "$work/tree"
	if ! (cd "$work/tree" && git apply "$patches/$1.patch"); then
		echo "$1: the patch does not apply any more; make it anew against the present code" >&2
		return 1
	fi
}

build() { (cd "$1" && "$GO" build -trimpath -o "$2" ./internal/sim/planted/hunt); }

# Patches named farm-…, vcluster-… or facing-… are looked for by schedules of that kind,
# the others by those of pairs.
kind=""
kindOf() { case $1 in farm-* | vcluster-* | facing-*) kind=${1%%-*} ;; *) kind="" ;; esac; }

# hunt BINARY FROM TO: the first violation as seed, rule, text; nothing if there is none.
hunt() {
	local status=0
	"$1" -from "$2" -to "$3" ${workers:+-workers "$workers"} ${kind:+-kind "$kind"} ${4:-} || status=$?
	[ $status -le 1 ]
}

for b in "${bugs[@]}"; do
	if [ ! -f "$patches/$b.patch" ]; then
		echo "there is no $patches/$b.patch" >&2
		exit 2
	fi
	plant "$b"
done
if [ -n "$check" ]; then
	echo "all ${#bugs[@]} patches apply"
	exit 0
fi

build "$work/clean" "$work/control"
last=$((first + limit - 1)) missed=0 rows=()
declare -A highest=([pair]=-1 [farm]=-1 [vcluster]=-1 [facing]=-1)
for b in "${bugs[@]}"; do
	kindOf "$b"
	begin=$(date +%s.%N)
	plant "$b"
	build "$work/tree" "$work/planted"
	from=$first found=""
	while [ "$from" -le "$last" ]; do
		found=$(hunt "$work/planted" "$from" "$last")
		if [ -z "$found" ]; then
			break
		fi
		seed=${found%%$'\t'*}
		without=$(hunt "$work/control" "$seed" "$seed")
		if [ -z "$without" ]; then
			break
		fi
		echo "$b: seed $seed violates a rule without the bug too, and does not count"
		found="" from=$((seed + 1))
	done
	took=$(echo "$begin $(date +%s.%N)" | awk '{printf "%.0f", $2 - $1}')
	if [ -z "$found" ]; then
		missed=$((missed + 1))
		echo "$b: NOT FOUND in $limit schedules, $took s"
		rows+=("| $b | **not found** | $limit | | $took |")
		continue
	fi
	IFS=$'\t' read -r seed rule text <<<"$found"
	if [ "$seed" -gt "${highest[${kind:-pair}]}" ]; then highest[${kind:-pair}]=$seed; fi
	echo "$b: found by seed $seed, $took s: $rule: $text"
	rows+=("| $b | $rule | $((seed - first + 1)) | $seed | $took |")
done

echo
echo "| Planted bug | Rule violated | Schedules | Seed | Seconds |"
echo "|---|---|---|---|---|"
printf '%s\n' "${rows[@]}"
echo
# unplanted KIND HIGHEST: without any bug, the seeds that were needed violate nothing.
unplanted() {
	kindOf "$1"
	if [ "$2" -lt "$first" ]; then return; fi
	control=$(hunt "$work/control" "$first" "$2" -all)
	if [ -n "$control" ]; then
		echo "without any bug, these of the seeds $first to $2 violate a rule:"
		echo "$control"
		exit 1
	fi
	echo "without any bug, the $1 seeds $first to $2 violate nothing"
}
for k in pair farm vcluster facing; do unplanted "$k-" "${highest[$k]}"; done
if [ "$missed" -gt 0 ]; then
	echo "$missed of ${#bugs[@]} bugs were not found"
	exit 1
fi
echo "all ${#bugs[@]} bugs were found"
