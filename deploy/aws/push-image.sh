#!/usr/bin/env bash
# Puts an image into ECR: push-image.sh REPOSITORY TAG [TAR]. TAR is what `make image` made (its last line); without Docker.
# Needs aws and skopeo (apt-get install skopeo).
set -euo pipefail
repository=${1:?as in 123456789012.dkr.ecr.eu-west-1.amazonaws.com/dask-tide}
tag=${2:?a tag; they are immutable}
tar=${3:-$(make --silent --directory "$(dirname "$0")/../.." image | tail -1)}

registry=${repository%%/*}
region=$(cut -d. -f4 <<<"$registry")
aws ecr get-login-password --region "$region" | skopeo login --username AWS --password-stdin "$registry"
skopeo copy "docker-archive:$tar" "docker://$repository:$tag"
echo "image.repository=$repository,image.tag=$tag"
