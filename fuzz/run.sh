#!/usr/bin/env bash
# Runs every fuzz target, or those named, for FUZZ_SECONDS each (60), from its seeds and what earlier runs kept in
# fuzz/corpus. An input that fails is kept in fuzz/artifacts; give it to `cargo fuzz run TARGET FILE` to see it again.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v c++ >/dev/null; then
    echo "a C++ compiler is missing, which libFuzzer is built with: install g++ or clang" >&2
    exit 1
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "cargo-fuzz is missing; installing it"
    cargo install --quiet --locked cargo-fuzz
fi

# Lets the stable compiler take the sanitizer's flags.
export RUSTC_BOOTSTRAP=1
cargo fuzz build

if [ $# -eq 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
    set -- "${targets[@]}"
fi
for target in "$@"; do
    echo "== $target"
    mkdir -p "fuzz/corpus/$target"
    cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="${FUZZ_SECONDS:-60}" -timeout=20 -print_final_stats=1 -verbosity=0
done
