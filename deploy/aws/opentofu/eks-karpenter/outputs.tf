output "karpenter_values" {
  description = "For the chart deploy/aws/karpenter."
  value = yamlencode({
    clusterName      = var.cluster_name
    nodeRole         = aws_iam_role.machine.name
    subnetIds        = var.subnet_ids
    securityGroupIds = coalescelist(var.security_group_ids, [data.aws_eks_cluster.this.vpc_config[0].cluster_security_group_id])
  })
}

output "karpenter_settings" {
  description = "For Karpenter's own chart."
  value = yamlencode({
    settings = { clusterName = var.cluster_name, interruptionQueue = module.interruptions.queue_name }
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
