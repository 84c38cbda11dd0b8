# What Karpenter and dask-tide need on an EKS cluster that exists: roles, the queue of interruptions, the image's repository,
# the budget. Subnets and security groups are others', so they get no tag, which their owner would take away again: Karpenter
# is told their ids.

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
  name         = "${var.cluster_name}-${var.region}-karpenter"
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
  name            = "${var.cluster_name}-${var.region}-karpenter"
  cluster_name    = var.cluster_name
  namespace       = var.karpenter_namespace
  service_account = "karpenter"
  policies        = [data.aws_iam_policy_document.karpenter.minified_json]
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
