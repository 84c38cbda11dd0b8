# What bites on a cluster that exists, said at each plan and apply: as warnings, since one may have reasons.

check "network_policies" {
  data "aws_eks_addon" "network" {
    cluster_name = var.cluster_name
    addon_name   = "vpc-cni"
  }

  assert {
    condition     = try(tobool(jsondecode(data.aws_eks_addon.network.configuration_values).enableNetworkPolicy), false)
    error_message = "The VPC CNI does not enforce NetworkPolicies (its default): anybody in the cluster may try the scheduler's port and the status page. See docs/aws.md, \"What bites\"."
  }
}

check "pod_identities" {
  data "aws_eks_addon" "identities" {
    cluster_name = var.cluster_name
    addon_name   = "eks-pod-identity-agent"
  }

  assert {
    condition     = data.aws_eks_addon.identities.addon_version != ""
    error_message = "Without the add-on eks-pod-identity-agent no pod gets its role."
  }
}
