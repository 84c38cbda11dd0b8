# What is around a kOps cluster: where kOps keeps its state, where pods' identities are looked up, the image's
# repository, the budget. The cluster itself, with its VPC, roles and groups, is kOps's; so is the queue of spot notices, which
# there is only with cluster-autoscaler.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

module "registry" {
  source = "../modules/registry"
  name   = coalesce(var.image_repository, "dask-tide/${lower(var.cluster_name)}")
}

module "budget" {
  source       = "../modules/budget"
  name         = "${var.cluster_name}-${var.region}"
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
