# Managed node groups for dask-tide on an EKS cluster that exists, and what cluster-autoscaler may do with them; the image's
# repository, the budget. EKS itself drains spot machines that are about to go, so that no termination handler is needed; it also
# replaces and drains those for which EC2 merely recommends it (Capacity Rebalancing), and has no switch for that.

data "aws_partition" "current" {}

data "aws_caller_identity" "current" {}

data "aws_eks_cluster" "this" {
  name = var.cluster_name
}

locals {
  partition = data.aws_partition.current.partition
  account   = data.aws_caller_identity.current.account_id
}

module "conditions" {
  source       = "../modules/eks-conditions"
  cluster_name = var.cluster_name
}

module "registry" {
  source = "../modules/registry"
  name   = coalesce(var.image_repository, "dask-tide/${lower(var.cluster_name)}-node-groups")
}

module "budget" {
  source       = "../modules/budget"
  name         = "${var.cluster_name}-${var.region}-node-groups"
  cluster_name = var.cluster_name
  monthly_usd  = var.budget.monthly_usd
  emails       = var.budget.emails
}

module "status_page" {
  count  = var.status_page == null ? 0 : 1
  source = "../modules/status-page"

  zone          = var.status_page.zone
  host          = var.status_page.host
  load_balancer = var.status_page.load_balancer
}

module "autoscaler_role" {
  count  = var.autoscaler == null ? 0 : 1
  source = "../modules/pod-role"

  name            = "${var.cluster_name}-${var.region}-autoscaler"
  cluster_name    = var.cluster_name
  namespace       = var.autoscaler.namespace
  service_account = var.autoscaler.service_account
  policies        = [data.aws_iam_policy_document.autoscaler.json]
}

module "worker_role" {
  count  = length(var.worker_policy_arns) == 0 ? 0 : 1
  source = "../modules/pod-role"

  name            = "${var.cluster_name}-${var.region}-dask-worker"
  cluster_name    = var.cluster_name
  namespace       = var.release.namespace
  service_account = "${var.release.name}-worker"
  policy_arns     = var.worker_policy_arns
}

data "aws_iam_policy_document" "autoscaler" {
  #checkov:skip=CKV_AWS_356:Auto Scaling's and EC2's Describe calls know no resources
  statement {
    sid = "Read"
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLaunchConfigurations",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:DescribeTags",
      "ec2:DescribeImages",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:GetInstanceTypesFromInstanceRequirements",
    ]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestedRegion"
      values   = [var.region]
    }
  }

  # Labels and taints of a group that has no machine yet.
  statement {
    sid       = "ReadGroups"
    actions   = ["eks:DescribeNodegroup"]
    resources = ["arn:${local.partition}:eks:${var.region}:${local.account}:nodegroup/${var.cluster_name}/*"]
  }

  statement {
    sid     = "Scale"
    actions = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    resources = [
      for group in local.groups :
      "arn:${local.partition}:autoscaling:${var.region}:${local.account}:autoScalingGroup:*:autoScalingGroupName/${group.resources[0].autoscaling_groups[0].name}"
    ]

    # EKS puts it on the groups that it makes.
    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.cluster_name}"
      values   = ["owned"]
    }
  }
}
