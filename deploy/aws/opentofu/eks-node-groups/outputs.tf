output "autoscaler_values" {
  description = "For cluster-autoscaler's own chart, after ../../cluster-autoscaler-values.yaml."
  value = yamlencode({
    awsRegion = var.region
    autoscalingGroups = [
      for group in local.groups : {
        name    = group.resources[0].autoscaling_groups[0].name
        minSize = group.scaling_config[0].min_size
        maxSize = group.scaling_config[0].max_size
      }
    ]
    rbac = { serviceAccount = { name = try(var.autoscaler.service_account, null) } }
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
