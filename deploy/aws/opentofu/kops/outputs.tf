output "kops_inputs" {
  description = "What the template of the cluster is filled in with, on top of its defaults."
  value = yamlencode({
    clusterName       = var.cluster_name
    region            = var.region
    zones             = var.zones
    controlPlaneZones = [var.zones[0]]
    workerZones       = [var.zones[0]]
    adminCidrs        = var.admin_cidrs
    dnsZone           = var.dns_zone == null ? "" : var.dns_zone
    stateStore        = "s3://${aws_s3_bucket.state.bucket}"
    stateKeyArn       = aws_kms_key.state.arn
    discoveryStore    = "s3://${aws_s3_bucket.discovery.bucket}/${var.cluster_name}"
  })
}

output "kops_state_store" {
  description = "KOPS_STATE_STORE."
  value       = "s3://${aws_s3_bucket.state.bucket}"
}

output "image_repository" {
  description = "The chart's image.repository."
  value       = module.registry.repository_url
}

output "certificate_arn" {
  description = "Of the status page's host; null without one."
  value       = one(module.status_page[*].certificate_arn)
}
