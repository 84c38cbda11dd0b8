#!/usr/bin/env bash
# What still costs money after a cluster is gone: everything in the region that bears its tag, or kOps's or Kubernetes' own.
# Usage: leftovers.sh CLUSTER [REGION]. Ends with 1 if there is anything, with 2 if AWS could not be asked.
set -euo pipefail
cluster=${1:?name of the cluster, as in dask-adaptive.k8s.local}
region=${2:-${AWS_REGION:?a region, as second argument or in AWS_REGION}}

found=
# Volumes of claims and load balancers outlive a cluster that is deleted in a hurry; the volumes bear only a claim's name.
filters=("dask-tide/cluster,Values=$cluster" "KubernetesCluster,Values=$cluster" kubernetes.io/created-for/pvc/name)
# EKS's names have no dots, and the EKS cluster itself stays, with all that bears kOps's tag. Of load balancers there
# one controller names the cluster, the other one only the Service.
if [[ $cluster == *.* ]]; then
    filters+=("kubernetes.io/cluster/$cluster")
else
    filters+=("elbv2.k8s.aws/cluster,Values=$cluster" kubernetes.io/service-name)
fi
for filter in "${filters[@]}"; do
    found+=$(aws resourcegroupstaggingapi get-resources --region "$region" --tag-filters "Key=$filter" \
        --query 'ResourceTagMappingList[].ResourceARN' --output text)$'\n' || exit 2
done
left=
while read -r arn; do
    if [[ $arn == *:key/* ]]; then
        # One that is to be deleted keeps its tags until it is, a week or more, and costs nothing.
        state=$(aws kms describe-key --region "$region" --key-id "$arn" --query KeyMetadata.KeyState --output text) || exit 2
        if [[ $state == PendingDeletion ]]; then continue; fi
    fi
    left+=$arn$'\n'
done < <(tr '\t' '\n' <<<"$found" | sed '/^None$/d; /^$/d' | sort -u)

if [ -z "$left" ]; then
    echo "Nothing of $cluster is left in $region."
    exit 0
fi
echo "Left in $region (volumes of claims and load balancers of Services may be another cluster's; terminated instances are listed for an hour):"
printf %s "$left"
exit 1
