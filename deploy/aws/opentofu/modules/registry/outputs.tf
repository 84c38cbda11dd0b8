output "repository_url" {
  description = "What the chart's image.repository is set to."
  value       = aws_ecr_repository.this.repository_url
}
