output "autoscaler_values" {
  description = "For cluster-autoscaler's own chart, after ../../cluster-autoscaler-values.yaml."
  value = yamlencode({
    awsRegion     = var.region
    autoDiscovery = { clusterName = var.cluster_name }
    rbac          = { serviceAccount = { name = var.autoscaler.service_account } }
  })
}

output "image_repository" {
  description = "The chart's image.repository."
  value       = module.registry.repository_url
}

output "certificate_arn" {
  description = "Of the status page's host; null without one."
  value       = one(module.status_page[*].certificate_arn)
}
