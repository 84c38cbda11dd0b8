# What Karpenter and dask-tide need on an EKS cluster that exists: roles, the queue of interruptions, the tags by which
# subnets and security group are found, the image's repository, the budget.

data "aws_partition" "current" {}

data "aws_caller_identity" "current" {}

data "aws_eks_cluster" "this" {
  name = var.cluster_name
}

locals {
  partition = data.aws_partition.current.partition
  account   = data.aws_caller_identity.current.account_id
  # The tag of its own on all that Karpenter makes.
  owned = "kubernetes.io/cluster/${var.cluster_name}"
  # Ours alone: subnets may be another cluster's, too, with its karpenter.sh/discovery.
  discovery = "dask-tide/discovery/${var.cluster_name}"
}

module "conditions" {
  source       = "../modules/eks-conditions"
  cluster_name = var.cluster_name
}

module "registry" {
  source = "../modules/registry"
  name   = coalesce(var.image_repository, "dask-tide/${lower(var.cluster_name)}")
}

module "budget" {
  source       = "../modules/budget"
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

module "interruptions" {
  source = "../modules/interruptions"
  name   = "${var.cluster_name}-karpenter"
}

module "karpenter_role" {
  source          = "../modules/pod-role"
  name            = "${var.cluster_name}-karpenter"
  cluster_name    = var.cluster_name
  namespace       = var.karpenter_namespace
  service_account = "karpenter"
  policies        = [data.aws_iam_policy_document.karpenter.minified_json]
}

module "worker_role" {
  count  = length(var.worker_policy_arns) == 0 ? 0 : 1
  source = "../modules/pod-role"

  name            = "${var.cluster_name}-dask-worker"
  cluster_name    = var.cluster_name
  namespace       = var.release.namespace
  service_account = "${var.release.name}-worker"
  policy_arns     = var.worker_policy_arns
}

resource "aws_ec2_tag" "subnet" {
  for_each = toset(var.subnet_ids)

  resource_id = each.value
  key         = local.discovery
  value       = "true"
}

resource "aws_ec2_tag" "security_group" {
  for_each = toset(concat([data.aws_eks_cluster.this.vpc_config[0].cluster_security_group_id], var.security_group_ids))

  resource_id = each.value
  key         = local.discovery
  value       = "true"
}
