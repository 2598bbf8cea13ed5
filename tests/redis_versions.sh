#!/usr/bin/env bash
# What depends on Redis, against each of these servers: standalone, as a Cluster and under Sentinels.
#   tests/redis_versions.sh redis-server /opt/redis-6.2/redis-server /opt/valkey/valkey-server
# WEIR_TESTS names other tests, by what their names contain. Builds what it runs; ends with a line for each server.
set -u
cd "$(dirname "$0")/.." || exit 2

readonly OF_PROCESSES=(redis_ invalidation:: failover:: limits:: limit_algorithms:: limit_afterwards:: leases:: trips:: storm::)
readonly OF_PARTS=(kv:: invalidation::tests:: limit:: cache::)
read -ra chosen <<<"${WEIR_TESTS:-${OF_PROCESSES[*]}}"

# With TLS a server misses its certificate; without, it does not know what a certificate is.
speaks_tls() {
	timeout 5 "$1" --port 0 --tls-port 21999 --save '' 2>&1 | grep -q 'tls-cert-file'
}

[ $# -gt 0 ] || { echo "usage: tests/redis_versions.sh SERVER..." >&2; exit 2; }
cargo test --locked --no-run || exit 1

results=()
failed=0
for server in "$@"; do
	path=$(command -v "$server") || { echo "$server: there is no such program" >&2; exit 2; }
	version=$("$path" --version | sed -E 's/ server v=/ /; s/ sha=.*//')
	skipped=()
	speaks_tls "$path" || skipped=(--skip tls --skip certificate)
	outcome=ok
	for tests in "--lib ${OF_PARTS[*]}" "--test it ${chosen[*]}"; do
		read -ra words <<<"$tests"
		[ "${words[0]}" = --lib ] && [ -n "${WEIR_TESTS:-}" ] && continue
		target=("${words[0]}")
		[ "${words[0]}" = --test ] && target=(--test "${words[1]}")
		echo "== $version: ${words[*]}"
		WEIR_REDIS_SERVER=$path cargo test --locked "${target[@]}" -- "${words[@]:${#target[@]}}" "${skipped[@]}" || outcome=FAILED
	done
	[ "$outcome" = ok ] || failed=1
	results+=("$version: $outcome${skipped:+ (built without TLS: those tests left out)}")
done
printf '%s\n' "${results[@]}"
exit "$failed"
